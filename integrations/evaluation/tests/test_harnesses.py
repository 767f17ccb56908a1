"""Both harnesses on the reference: the score that they report is the one that `lop evaluate` measures.

`make test-harnesses`, which makes their environments: LOP_LM_EVAL_PYTHON and LOP_LMMS_EVAL_PYTHON.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lop.workflows.compute import load_for_compute
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.loading import load_processor
from pruning.cutting.prune_checkpoint import prune_checkpoint
from pruning.data.conversations import load_conversations
from pruning.measuring.generation import generate_answers
from tests.pruning.cut_models import plan_for, random_ranking

REFERENCE = Path(__file__).parents[3] / "reference"
MODEL, DATA = REFERENCE / "model", REFERENCE / "data" / "validation.json"
NUM_CONVERSATIONS = 5
PYTHONS = {name: os.environ.get(f"LOP_{name.upper().replace('-', '_')}_PYTHON") for name in ("lm-eval", "lmms-eval")}


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference without a twelfth of its channels, any of them: some answers are wrong then."""
    anatomy = read_anatomy(MODEL)
    ranking = random_ranking(anatomy)
    plan = plan_for(anatomy, ranking, [x.ffn_width * 11 // 12 for x in anatomy.layers])
    return prune_checkpoint(MODEL, plan, ranking, tmp_path_factory.mktemp("harness") / "pruned")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first conversations of the validation set, as a file of their own."""
    items = json.loads(DATA.read_text())[:NUM_CONVERSATIONS]
    for item in items:
        item["image"] = str(DATA.parent / item["image"])
    path = tmp_path_factory.mktemp("task") / "validation.json"
    path.write_text(json.dumps(items))
    return path


@pytest.fixture(scope="module")
def expected(pruned: Path, task: Path) -> dict[str, list[float]]:
    """Each question's score, as `lop evaluate` counts it."""
    conversations = load_conversations(task)
    reports = {
        name: generate_answers(load_for_compute(folder), load_processor(folder), conversations)
        for name, folder in (("dense", MODEL), ("model", pruned))
    }
    return {name: [float(x) for row in report.correct for x in row] for name, report in reports.items()}


@pytest.mark.parametrize("harness", PYTHONS)
def test_scores_are_those_of_lop_evaluate(
    harness: str, pruned: Path, task: Path, expected: dict[str, list[float]]
) -> None:
    python = PYTHONS[harness]
    if python is None:
        pytest.skip(f"no environment with {harness}: make test-harnesses makes one")
    command = [
        sys.executable,
        "-m",
        "lop.cli",
        "evaluate",
        str(pruned),
        "--dense",
        str(MODEL),
        f"--{harness}",
        str(task),
    ]
    done = subprocess.run([*command, "--harness-python", python, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for name, scores in expected.items():
        said = found["scores"][name]["validation"]["exact_match"]
        assert [said[str(index)] for index in range(len(said))] == scores
    pair = found["paired"]["validation"]["exact_match"]
    assert 0 < pair["pruned"] < pair["dense"]
    assert json.loads(Path(found["file"]).read_text())["paired"] == found["paired"]
