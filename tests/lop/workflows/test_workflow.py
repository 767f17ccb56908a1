"""From a queued search to a predicted plan, and the demo, with everything real but the model's size.

The commands of the first run in this process; those of the demo, and of `tests/service/test_compose.py`, in theirs.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lop.cli import main
from lop.workflows.demo import DemoSettings, run_demo
from lop.workflows.demo_picture import demo_shares, draw_demo
from pruning.anatomy.decoder_view import decoder_view
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.loading import load_pruned
from pruning.data.conversations import calibration_id, load_conversations
from pruning.errors import InputError
from pruning.planning.scope import Scope
from storage.sql_repository import open_repository
from tests.forked import run_lop
from tests.tiny_models import save_tiny_checkpoint, write_conversations

Lop = Callable[..., str]


@pytest.fixture
def lop(database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lop:
    """Run `lop ARGUMENTS` on the database; returns its output. What fails raises what it says."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["lop", *map(str, arguments), "--database", database])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        if ended.value.code:
            raise RuntimeError(said.err)
        return said.out

    return run


def test_a_queued_search_ends_in_a_predictor_that_plans(
    lop: Lop, data: Path, tmp_path: Path, short_training: None
) -> None:
    options = ("-s", 0.3, "-s", 0.6, "-n", 30, "--num-levels", 6, "--conversations", 4)
    queued = json.loads(lop("search", "-m", "tiny", "-d", data, *options, "--queue", "--json"))
    assert queued["status"] == "queued"
    lop("worker", "--once", "--poll-seconds", 1)
    (job,) = json.loads(lop("job", "list", "--json"))
    assert (job["id"], job["status"], job["error"]) == (queued["job"], "done", None)
    row = job["result"]
    assert [target["label"] for target in row["targets"]] == ["sparsity 0.3 (ffn)", "sparsity 0.6 (ffn)"]
    plan = json.loads(lop("plan", "-m", "tiny", "-s", 0.45, "--json"))
    assert plan["method"] == "lop"
    assert plan["provenance"]["predictor"] == row["predictor"]
    assert 0.45 <= plan["achieved"]["removed"]["ffn"] < 0.45 + 8 / (4 * 48)
    low, high = plan["predicted"]["interval"]
    assert low <= plan["predicted"]["quality"] <= high
    uniform = lop("plan", "-m", "tiny", "-s", 0.45, "--method", "uniform")
    assert re.search(r"predicted KL to dense: \d\.\d{4} \(calibration data\)", uniform)
    assert re.search(r"predicted agreement with the dense model: \d+\.\d% \(calibration data\)", uniform)
    # The tiny model was never trained: it gives no answer exactly, and exact match says nothing.
    assert plan["predicted"].keys() == {"quality", "interval", "metric", "of", "agreement", "agreement_interval"}
    assert "exact match" not in uniform
    searched = json.loads(lop("plan", "-m", "tiny", "-s", 0.6, "--method", "mcts", "--json"))
    assert searched["provenance"]["calibration"] == calibration_id(load_conversations(data)[:4])
    # Trained again on the same samples: the same predictor, and the same plan.
    again = json.loads(lop("train", "-m", "tiny", "--num-levels", 6, "--out", tmp_path / "p", "--json"))
    assert again["predictor"] == row["predictor"]
    assert {path.name for path in (tmp_path / "p").iterdir()} == {"model.safetensors", "predictor.json"}
    assert json.loads(lop("plan", "-m", "tiny", "-s", 0.45, "--json")) == plan
    with pytest.raises(RuntimeError, match="--num-levels"):
        lop("train", "-m", "tiny", "--num-levels", 5)


def test_the_demo_runs_and_its_checkpoints_give_its_numbers(
    tmp_path: Path, short_training: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its server starts from nothing; its other commands are forked."""
    monkeypatch.setattr(subprocess, "run", run_lop)
    reference = tmp_path / "reference"
    save_tiny_checkpoint(reference / "model", ffn_width=64)
    for split in ("calibration", "validation"):
        path = write_conversations(reference / "data", 8)
        path.rename(reference / "data" / f"{split}.json")
    settings = DemoSettings(searched=(0.3, 0.7), evaluations=25, calibration=4)
    result, plans = run_demo(reference, tmp_path / "out", settings)
    assert result.samples == open_repository(f"sqlite:///{tmp_path / 'out' / 'lop.db'}").count_samples("reference")
    assert result.achieved_sparsity == plans["lop"].achieved.removed[Scope.FFN]
    assert 0.5 <= result.achieved_sparsity < 0.5 + 8 / (4 * 64)
    assert plans["lop"].method == "lop"
    assert json.loads(result.to_json()).keys() == {
        "dense_accuracy", "uniform_accuracy", "lop_accuracy", "uniform_agreement", "lop_agreement", "target_sparsity",
        "achieved_sparsity", "plan_latency_ms", "samples", "seconds",
    }  # fmt: skip
    anatomy = read_anatomy(reference / "model")
    widths = {name: list(plan.ffn_widths(anatomy)) for name, plan in plans.items()}
    for name in plans:
        view = decoder_view(load_pruned(tmp_path / "out" / f"{name}-checkpoint"))
        assert [view.out_projection(i).in_features for i in range(4)] == widths[name]
    assert 0.0 < result.uniform_agreement <= 1.0
    assert 0.0 < result.lop_agreement <= 1.0
    assert set(demo_shares(result)) == {"agreement with dense"}
    exact = replace(result, dense_accuracy=0.9, uniform_accuracy=0.2, lop_accuracy=0.5)
    assert set(demo_shares(exact)) == {"exact match", "agreement with dense"}
    agreeing = replace(result, uniform_agreement=0.5, lop_agreement=0.75)
    assert (agreeing.dense_accuracy, agreeing.recovered) == (0.0, 0.5)
    assert exact.recovered == pytest.approx(3 / 7)
    draw_demo(exact, widths, 64, tmp_path / "exact.png")
    draw_demo(result, widths, 64, tmp_path / "demo.png")
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="left out"):
        run_demo(reference, tmp_path / "out", DemoSettings(target=0.3, searched=(0.3,)))
