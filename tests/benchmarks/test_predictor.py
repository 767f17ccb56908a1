"""What the predictor's benchmark makes of its measurements; the measurements themselves take half an hour."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from benchmarks.collect import HELD_OUT_TARGETS, TRAINED_TARGETS, read_samples, write_samples
from benchmarks.predictor import BASELINES, SEARCHED, _best_found, _holds, _spearman, _summary_of_quality
from benchmarks.subject import MODEL_ID, Subject
from pruning.metrics import Metrics
from storage.records import Sample


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


def test_targets_left_out_are_left_out() -> None:
    assert not set(TRAINED_TARGETS) & set(HELD_OUT_TARGETS)
    assert len(HELD_OUT_TARGETS) >= 6
    assert (min(HELD_OUT_TARGETS), max(HELD_OUT_TARGETS)) == (0.15, 0.75)


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


def sample(widths: tuple[int, ...], kl: float) -> Sample:
    metrics = Metrics(kl=kl, nll=1.25, accuracy=0.5, num_tokens=10, num_answers=4)
    return Sample(MODEL_ID, "r" * 64, "c" * 64, widths, metrics, 0.5, "mcts")


SUBJECT = cast(
    "Subject",
    SimpleNamespace(
        ranking=SimpleNamespace(sha256="r" * 64),
        calibration_id="c" * 64,
        budget=lambda sparsity, _: int((1 - sparsity) * 100),
        kept_parameters=lambda widths, _: sum(widths),
    ),
)


def test_samples_are_read_back_as_they_were(tmp_path: Path) -> None:
    samples = [(0, sample((8, 16), 0.1 + 0.2)), (2, sample((16, 8), 1e-7))]
    write_samples(tmp_path / "new" / "samples.csv", samples)
    assert read_samples(tmp_path / "new" / "samples.csv", SUBJECT) == samples


def test_the_best_that_a_search_found_meets_the_target() -> None:
    found = [sample((30, 30), 0.1), sample((20, 30), 0.3), sample((10, 30), 0.2)]
    assert _best_found(SUBJECT, found, 0.5).widths == (10, 30)
    assert _best_found(SUBJECT, found, 0.4).widths == (30, 30)
