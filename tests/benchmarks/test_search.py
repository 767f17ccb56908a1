"""The search benchmark from start to end on a tiny model: its form, its fairness, its pictures. Not its figures."""

import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import enumeration, machine, search, subject
from tests.tiny_models import save_tiny_checkpoint, write_conversations

METHODS = {
    "additive-dp",
    "ecoflap",
    "evolution",
    "evolution-1500",
    "evolution-dp",
    "flap",
    "llm-pruner",
    "mcts",
    "mcts-single",
    "owl",
    "random",
    "shortgpt",
    "uniform",
    "wanda-sp",
}
SPARSITIES = (0.3, 0.5)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a small run wrote to."""
    reference = tmp_path / "reference"
    save_tiny_checkpoint(reference / "model")
    data = reference / "data"
    for seed, split in enumerate(("calibration", "validation")):
        source = write_conversations(tmp_path / split, seed=seed)
        data.mkdir(exist_ok=True)
        (data / f"{split}.json").write_text(source.read_text().replace("images/", f"{source.parent}/images/"))
    small = {"SPARSITIES": SPARSITIES, "SEEDS": (0, 1), "EVALUATIONS": 16, "LONG_EVALUATIONS": 20, "NUM_LEVELS": 3}
    for name, value in {**small, "RESULTS_DIR": tmp_path / "results"}.items():
        monkeypatch.setattr(search, name, value)
    for name, value in {"SPARSITIES": SPARSITIES, "SEEDS": (0,), "LEVELS": 3, "EVALUATIONS": 9}.items():
        monkeypatch.setattr(enumeration, name, value)
    monkeypatch.setattr(machine, "RESULTS_DIR", tmp_path / "results")
    monkeypatch.setattr(subject, "WORK_DIR", tmp_path / "work")
    search.main(reference=reference, conversations=3)
    return tmp_path / "results"


def test_a_small_run(results: Path) -> None:
    document = json.loads((results / "search.json").read_text())
    assert set(document) == {"machine", "commit", "measured_at", "code", "summary", "rows"}
    assert {"benchmarks/search.py", "mcts/search.py", "pruning/measuring/evaluation.py"} <= document["code"].keys()
    rows, summary = document["rows"], document["summary"]
    counts = Counter(row["method"] for row in rows)
    assert set(counts) == METHODS
    assert {counts[m] for m in ("mcts", "evolution", "evolution-dp", "random")} == {len(SPARSITIES) * 2}
    for sparsity in SPARSITIES:
        kept = {row["method"]: row["parameters"] for row in rows if row["sparsity"] == sparsity}
        step = 3 * 32 * 8  # eight channels of a layer
        assert max(kept.values()) - min(kept.values()) < step
        spent = {row["method"]: row["evaluations"] for row in rows if row["sparsity"] == sparsity}
        # Four layers of three levels: 9 evaluations for the scan, 5 of them a target's share. A space as small as this
        # may be used up before the evaluations are.
        assert all(spent[m] <= 16 for m in ("mcts", "evolution-dp", "evolution", "random", "mcts-single"))
        assert spent["evolution-1500"] <= 20
    assert set(summary["holds"]) == {
        "kl_ratio_at_most_1.02_everywhere",
        "no_worse_than_evolution_1500",
        "every_optimum_found",
        "share_of_enumeration_at_most_0.1",
    }
    assert summary["exact_check"]["optima_found"] == 2  # nine configurations, nine evaluations
    assert summary["worst_kl_ratio"] == max(summary["kl_ratio_to_best_other"].values())
    for picture in ("search.png", "search_progress.png"):
        assert (results / picture).read_bytes().startswith(b"\x89PNG")


def test_the_commit_is_that_of_the_start() -> None:
    assert len(machine.COMMIT_AT_START.removesuffix("+dirty")) == 40 or machine.COMMIT_AT_START == "unknown"
