"""What the predictor's benchmark makes of its measurements; the measurements themselves take half an hour."""

import csv
import dataclasses
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from benchmarks import intervals
from benchmarks.collect import (
    EVALUATIONS,
    HELD_OUT_FILE,
    HELD_OUT_TARGETS,
    SAMPLES_DIR,
    TRAINED_FILE,
    TRAINED_TARGETS,
    RoundEnds,
)
from benchmarks.predictor import BASELINES, SEARCHED, _best_found, _holds, _spearman, _summary_of_quality
from benchmarks.stored_samples import (
    Collection,
    describe,
    description_path,
    label_rounds,
    read_samples,
    write_samples,
)
from benchmarks.subject import MODEL_ID, REFERENCE, Subject
from pruning.allocators.methods import Method
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.data.conversations import calibration_id, load_conversations
from pruning.errors import DatasetError
from pruning.measuring.metrics import FoldMetrics, Metrics
from pruning.planning.plan import Predicted
from service.planner import Planner
from service.schemas import PlanRequest
from storage.contract import Repository
from storage.records import Sample
from tests.mcts.landscapes import make_anatomy


def rows(lop: float, others: float, searched: float) -> list[dict[str, Any]]:
    found = []
    for sparsity in (*TRAINED_TARGETS, *HELD_OUT_TARGETS):
        for method, kl in ({"lop": lop, SEARCHED: searched} | {b.value: others for b in BASELINES}).items():
            found.append({"method": method, "sparsity": sparsity, "validation_kl": kl})
    return found


def test_ratios_are_to_the_search_and_a_tie_with_a_baseline_is_not_worse() -> None:
    summary = _summary_of_quality(rows(lop=0.21, others=0.21, searched=0.2))
    assert summary["kl_ratio_trained_targets"] == pytest.approx(1.05)
    assert summary["kl_ratio_new_targets"] == pytest.approx(1.05)
    assert summary["targets_worse_than_baseline"] == 0
    worse = rows(lop=0.21, others=0.3, searched=0.2)
    for row in worse:
        if row["sparsity"] == 0.35 and row["method"] in ("flap", "uniform"):
            row["validation_kl"] = 0.1
    summary = _summary_of_quality(worse)
    assert summary["targets_worse_than_baseline"] == 1
    assert summary["worse_than_baseline"] == ["0.35: uniform", "0.35: flap"]


def test_new_targets_are_held_against_the_better_of_search_and_additive_program() -> None:
    found = rows(lop=0.2, others=0.25, searched=0.4)
    for row in found:
        if row["sparsity"] == 0.35 and row["method"] == SEARCHED:
            row["validation_kl"] = 0.16
        if row["sparsity"] == 0.3:  # searched: it does not count
            row["validation_kl"] *= 0.1 if row["method"] == SEARCHED else 1.0
    summary = _summary_of_quality(found)
    assert summary["validation_ratio_new_targets_worst"] == pytest.approx(1.25)
    expected = (0.8 ** (len(HELD_OUT_TARGETS) - 1) * 1.25) ** (1 / len(HELD_OUT_TARGETS))
    assert summary["validation_ratio_new_targets"] == pytest.approx(expected)


def test_targets_left_out_are_left_out() -> None:
    assert not set(TRAINED_TARGETS) & set(HELD_OUT_TARGETS)
    assert len(HELD_OUT_TARGETS) >= 6
    assert (min(HELD_OUT_TARGETS), max(HELD_OUT_TARGETS)) == (0.15, 0.75)


def test_the_samples_that_judge_were_not_trained_on_but_for_the_scan() -> None:
    trained, held_out = (
        {row["widths"]: row["source"] for row in csv.DictReader((SAMPLES_DIR / name).read_text().splitlines())}
        for name in (TRAINED_FILE, HELD_OUT_FILE)
    )
    both = trained.keys() & held_out.keys()
    assert {held_out[widths] for widths in both} == {"sensitivity"}
    assert {widths for widths, source in held_out.items() if source != SEARCHED} == both


def test_estimates_of_other_methods_are_held_against_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each plan's only width says its target and method; `kl` has what is measured of it."""
    monkeypatch.setattr(intervals, "NUM_OTHER_BUDGETS", 0)

    def plan(request: PlanRequest) -> SimpleNamespace:
        assert request.sparsity is not None
        width = round(100 * request.sparsity) + (request.method == Method.UNIFORM)
        return SimpleNamespace(ffn_widths=lambda _: (width,), predicted=Predicted(quality=0.5, of="calibration"))

    kl = {10: 0.25, 11: 0.5, 20: 1.0, 21: 2.0, 31: 0.5}

    def evaluate(split: str, widths: tuple[int, ...]) -> Metrics:
        assert split == "calibration"
        return Metrics(kl=kl[widths[0]], nll=0.0, accuracy=0.5, num_tokens=1, num_answers=1)

    found = intervals.bias_of_other_methods(
        cast("Planner", SimpleNamespace(plan=plan)),
        cast("Subject", SimpleNamespace(evaluate=evaluate, anatomy=None)),
        targets=(0.1, 0.1, 0.2),
        known={(11,)},
    )
    assert found["judged_plans_of_other_methods"] == 3
    ratios = found["kl_over_predicted_of_other_methods"]
    assert ratios["additive-dp"] == [pytest.approx(1.0), 0.5, 2.0]
    assert ratios["uniform"] == [pytest.approx(4.0), 4.0, 4.0]


def test_rank_correlation() -> None:
    a = np.array([1.0, 2.0, 3.0, 4.0])
    assert _spearman(a, a**3) == pytest.approx(1.0)
    assert _spearman(a, -a) == pytest.approx(-1.0)
    assert _spearman(a, np.array([1.0, 2.0, 4.0, 3.0])) == pytest.approx(0.8)


def test_what_was_not_measured_is_not_said_to_hold() -> None:
    assert _holds({"kl_ratio_new_targets": 1.2, "interval_coverage": 0.9}) == {
        "kl_ratio_new_targets": False,
        "interval_coverage": True,
    }


ANATOMY = dataclasses.replace(make_anatomy([64, 64]), fingerprint="f" * 64)


def sample(widths: tuple[int, ...], kl: float) -> Sample:
    metrics = Metrics(kl=kl, nll=1.25, accuracy=0.5, num_tokens=10, num_answers=4)
    return Sample(MODEL_ID, "r" * 64, "c" * 64, ANATOMY.architecture(widths), metrics, 0.5, "mcts")


SUBJECT = cast(
    "Subject",
    SimpleNamespace(
        ranking=SimpleNamespace(sha256="r" * 64),
        anatomy=ANATOMY,
        calibration_id="c" * 64,
        budget=lambda sparsity, _: int((1 - sparsity) * 100),
        kept_parameters=lambda widths, _: sum(widths),
        widths=lambda sample: ANATOMY.ffn_widths(sample.architecture),
    ),
)


COLLECTION = Collection((0.5,), 20, 2, 0.01)


def test_samples_are_read_back_as_they_were(tmp_path: Path) -> None:
    samples = [(0, sample((8, 16), 0.1 + 0.2)), (2, sample((16, 8), 1e-7))]
    path = tmp_path / "new" / "samples.csv"
    write_samples(path, samples, SUBJECT, COLLECTION)
    assert read_samples(path, SUBJECT) == samples
    described = json.loads(description_path(path).read_text())
    assert (described["samples"], described["evaluations"], described["rounds"]) == (2, 20, 2)


def test_agreement_and_folds_are_written_where_there_are_some_and_files_without_them_are_read(tmp_path: Path) -> None:
    plain = sample((8, 16), 0.5)
    agreeing = dataclasses.replace(plain, metrics=dataclasses.replace(plain.metrics, agreement=1 / 3))
    path = tmp_path / "samples.csv"
    folds = (FoldMetrics(0.25, 0.5, 1.0, 6, 2, 0.125), FoldMetrics(0.875, 0.5, 1.0, 4, 2))
    by_fold = dataclasses.replace(plain, metrics=dataclasses.replace(plain.metrics, folds=folds))
    write_samples(path, [(0, plain), (1, agreeing), (2, by_fold)], SUBJECT, COLLECTION)
    assert read_samples(path, SUBJECT) == [(0, plain), (1, agreeing), (2, by_fold)]
    lines = [line.rsplit(",", 2)[0] for line in path.read_text().splitlines()]  # as files from before them are
    path.write_text("\n".join(lines) + "\n")
    describe(path, SUBJECT, COLLECTION)
    assert read_samples(path, SUBJECT) == [(0, plain), (1, plain), (2, plain)]


@pytest.mark.parametrize("name", ["fingerprint", "ranking_sha256", "calibration_id", "csv_sha256"])
def test_samples_of_something_else_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "samples.csv"
    write_samples(path, [(0, sample((8, 16), 0.5))], SUBJECT, COLLECTION)
    document = json.loads(description_path(path).read_text())
    description_path(path).write_text(json.dumps(document | {name: "e" * 64}))
    with pytest.raises(DatasetError, match=f"their {name} is another"):
        read_samples(path, SUBJECT)


def test_samples_that_nobody_described_or_finished_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "samples.csv"
    write_samples(path, [(0, sample((8, 16), 0.5)), (0, sample((16, 8), 0.5))], SUBJECT, COLLECTION)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(DatasetError, match="their csv_sha256 is another"):
        read_samples(path, SUBJECT)
    description_path(path).unlink()
    with pytest.raises(DatasetError, match="a JSON that says what they are of"):
        read_samples(path, SUBJECT)


def test_the_stored_samples_are_of_the_reference_model() -> None:
    for name, targets in ((TRAINED_FILE, TRAINED_TARGETS), (HELD_OUT_FILE, HELD_OUT_TARGETS)):
        described = json.loads(description_path(SAMPLES_DIR / name).read_text())
        assert described["fingerprint"] == read_anatomy(REFERENCE / "model").fingerprint
        conversations = load_conversations(REFERENCE / "data" / "calibration.json")
        assert described["calibration_id"] == calibration_id(conversations)
        assert (described["targets"], described["evaluations"]) == (list(targets), EVALUATIONS)
        content = (SAMPLES_DIR / name).read_bytes()
        assert described["csv_sha256"] == hashlib.sha256(content).hexdigest()


def test_rounds_keep_their_labels_when_a_collection_is_resumed(tmp_path: Path) -> None:
    stored = [sample((n, 8), 0.5) for n in range(1, 4)]
    repository = cast("Repository", SimpleNamespace(list_samples=lambda _: stored))
    ends = RoundEnds(tmp_path / "ends.json", repository)
    assert ends.counts == []
    ends.add()
    stored += [sample((n, 16), 0.5) for n in range(1, 3)]
    ends.add()
    stored.append(sample((8, 24), 0.5))  # and killed, in round 2
    again = RoundEnds(tmp_path / "ends.json", repository)
    assert again.counts == [3, 5]
    assert [number for number, _ in label_rounds(stored, again.counts)] == [0, 0, 0, 1, 1, 2]


def test_the_best_that_a_search_found_meets_the_target() -> None:
    found = [sample((30, 30), 0.1), sample((20, 30), 0.3), sample((10, 30), 0.2)]
    assert _best_found(SUBJECT, found, 0.5) == found[2]
    assert _best_found(SUBJECT, found, 0.4) == found[0]
