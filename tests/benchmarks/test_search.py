"""The search benchmark from start to end on a tiny model: its form, its fairness, its pictures. Not its figures."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import enumeration, machine, search, subject
from tests.tiny_models import save_tiny_checkpoint, write_conversations

METHODS = {
    "additive-dp",
    "additive-dp-roots",
    "ecoflap",
    "evolution",
    "evolution-dp",
    "evolution-dp-roots",
    "evolution-few",
    "flap",
    "llm-pruner",
    "local-swaps",
    "local-swaps-roots",
    "mcts",
    "mcts-few",
    "mcts-kl",
    "mcts-tree",
    "mcts-tree-alone",
    "owl",
    "random",
    "random-few",
    "shortgpt",
    "uniform",
    "wanda-sp",
}
SPARSITIES = (0.3, 0.5)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a small run wrote to; nothing but this run is in the way of another."""
    folder = tmp_path_factory.mktemp("search")
    reference = folder / "reference"
    save_tiny_checkpoint(reference / "model")
    data = reference / "data"
    for seed, split in enumerate(("calibration", "validation")):
        source = write_conversations(folder / split, seed=seed)
        data.mkdir(exist_ok=True)
        (data / f"{split}.json").write_text(source.read_text().replace("images/", f"{source.parent}/images/"))
    with pytest.MonkeyPatch.context() as patch:
        # One model twice: what it measures once is remembered for the other.
        patch.setattr(search, "MODELS", {"reference": reference, "second": reference})
        small = {"SPARSITIES": SPARSITIES, "SEEDS": (0, 1), "EVALUATIONS": 16, "NUM_LEVELS": 3}
        for name, value in {**small, "RESULTS_DIR": folder / "results"}.items():
            patch.setattr(search, name, value)
        for name, value in {"SPARSITIES": SPARSITIES, "SEEDS": (0,), "LEVELS": 3, "EVALUATIONS": 9}.items():
            patch.setattr(enumeration, name, value)
        patch.setattr(machine, "RESULTS_DIR", folder / "results")
        patch.setattr(subject, "WORK_DIR", folder / "work")
        search.main(few=3)
        yield folder / "results"


def test_a_small_run(results: Path) -> None:
    document = json.loads((results / "search.json").read_text())
    assert set(document) == {"machine", "commit", "measured_at", "code", "summary", "rows"}
    assert {"benchmarks/search.py", "mcts/search.py", "pruning/measuring/evaluation.py"} <= document["code"].keys()
    summary = document["summary"]
    rows = [row for row in document["rows"] if row["model"] == "reference"]
    assert [row["model"] for row in document["rows"]] == ["reference"] * len(rows) + ["second"] * len(rows)
    counts = Counter(row["method"] for row in rows)
    assert set(counts) == METHODS
    seeds = {"mcts", "mcts-tree", "evolution-dp"}
    assert {m for m in METHODS if counts[m] == len(SPARSITIES) * 2} == seeds
    tokens = {row["scored_tokens"] for row in rows if row["method"] == "evolution-few"}
    for sparsity in SPARSITIES:
        own = [row for row in rows if row["sparsity"] == sparsity]
        kept = {row["method"]: row["parameters"] for row in own}
        step = 3 * 32 * 8  # eight channels of a layer
        assert max(kept.values()) - min(kept.values()) < step
        assert max(row["scored_tokens"] for row in own) <= max(tokens)
        # Four layers of three levels: nine evaluations for the scan, half of them a target's share.
        assert {row["evaluations"] for row in own if row["method"] == "additive-dp"} == {4.5}
    check_ratios(summary["models"]["reference"])
    ratios = ("validation_geomean_vs_best_other", "validation_worst_vs_best_other")
    for names, worse in ((ratios, max), (("tree_gain", "objective_gain"), min)):
        for name in names:
            assert summary[name] == worse(found[name] for found in summary["models"].values())
    assert summary["exact_check"]["optima_found"] == 2  # nine configurations, nine evaluations
    for picture in ("search.png", "search_progress.png", "search_second.png", "search_progress_second.png"):
        assert (results / picture).read_bytes().startswith(b"\x89PNG")


def check_ratios(summary: dict[str, Any]) -> None:
    means = summary["geomean_validation_kl"]
    with_objective = [method for method in means if method.endswith("-roots")]
    rivals = [method for method in means if method not in (*search.NOT_RIVALS, *with_objective)]
    for name, among in (("other", rivals), ("with_objective", with_objective)):
        best = min(among, key=means.__getitem__)
        assert summary[f"best_{name}"] == best
        assert summary[f"validation_geomean_vs_best_{name}"] == pytest.approx(means["mcts"] / means[best])
        assert summary[f"validation_worst_vs_best_{name}"] == max(summary[f"validation_vs_best_{name}"].values())
    assert summary["tree_gain"] == pytest.approx(means["mcts"] / means["mcts-tree"])
    assert summary["objective_gain"] > 0.0


def test_run_again_it_measures_nothing_and_says_the_same(results: Path) -> None:
    before = json.loads((results / "search.json").read_text())
    sizes = {path: path.stat().st_size for path in subject.WORK_DIR.glob("metrics-*.jsonl")}
    assert sizes
    search.main(few=3)
    after = json.loads((results / "search.json").read_text())
    assert {path: path.stat().st_size for path in sizes} == sizes
    quality = [[{**row, "seconds": 0.0} for row in document["rows"]] for document in (before, after)]
    assert quality[0] == quality[1]


def test_the_commit_is_that_of_the_start() -> None:
    assert len(machine.COMMIT_AT_START.removesuffix("+dirty")) == 40 or machine.COMMIT_AT_START == "unknown"
