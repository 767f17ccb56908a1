"""Samples: unique per (model, ranking, calibration set, architecture, protocol), the first one stays."""

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.errors import InputError, NotFoundError
from pruning.measuring.metrics import FoldMetrics, Metrics
from storage.sql_repository import SqlRepository
from storage.sql_samples import LOOKUP_CHUNK
from tests.storage.examples import ANATOMY, PROTOCOL, RANKING_SHA256, WEIGHTS_SHA256, calibration, model, sample


def test_samples_round_trip_in_the_order_they_were_stored(filled: SqlRepository) -> None:
    first, second = [sample(3), sample(1)], [sample(2)]
    assert filled.add_samples(first) == 2
    assert filled.add_samples(second) == 1
    assert filled.list_samples("m") == [*first, *second]


def test_only_new_samples_are_counted_and_the_first_stays(filled: SqlRepository) -> None:
    filled.add_samples([sample(1), sample(2)])
    again = dataclasses.replace(sample(2), metrics=Metrics(9.0, 9.0, 0.0, 1, 1), source="late")
    assert filled.add_samples([again, sample(3), sample(1), sample(3)]) == 1
    assert filled.list_samples("m") == [sample(1), sample(2), sample(3)]
    assert filled.count_samples("m") == 3


def test_no_samples(filled: SqlRepository) -> None:
    assert filled.add_samples([]) == 0
    assert filled.find_samples("m", RANKING_SHA256, "c", []) == {}
    assert filled.list_samples("m") == []
    assert filled.count_samples("missing") == 0


def test_model_ranking_and_calibration_set_tell_samples_apart(filled: SqlRepository) -> None:
    filled.add_model(model("other"))
    filled.add_calibration(calibration("d"))
    variants = [
        sample(1),
        sample(1, model_id="other"),
        sample(1, calibration_id="d"),
        dataclasses.replace(sample(1), ranking_sha256=WEIGHTS_SHA256),
    ]
    assert filled.add_samples(variants) == 4
    assert filled.count_samples("m") == 3
    assert filled.list_samples("m", calibration_id="d") == [variants[2]]
    assert filled.list_samples("m", ranking_sha256=WEIGHTS_SHA256) == [variants[3]]
    assert filled.list_samples("m", ranking_sha256=RANKING_SHA256, calibration_id="c") == [variants[0]]
    assert filled.list_samples("other") == [variants[1]]


def test_whether_samples_of_one_setting_are_scored_by_kl(filled: SqlRepository) -> None:
    """One without root KL is enough; those of another ranking, set or protocol say nothing."""
    filled.add_calibration(calibration("d"))
    folds = tuple(FoldMetrics(0.1, 0.8, 0.9, 320, 16, root_kl=0.3) for _ in range(2))
    by_root = [
        dataclasses.replace(s, metrics=dataclasses.replace(s.metrics, folds=folds)) for s in (sample(1), sample(2))
    ]
    others = [sample(1, calibration_id="d"), dataclasses.replace(sample(1), ranking_sha256=WEIGHTS_SHA256)]
    filled.add_samples([*by_root, *others, dataclasses.replace(sample(1), protocol=PROTOCOL)])
    assert not filled.is_scored_by_kl("m", RANKING_SHA256, "c")
    assert filled.is_scored_by_kl("m", RANKING_SHA256, "d")
    assert filled.is_scored_by_kl("m", WEIGHTS_SHA256, "c")
    assert filled.is_scored_by_kl("m", RANKING_SHA256, "c", protocol=PROTOCOL)
    filled.add_samples([sample(3)])
    assert filled.is_scored_by_kl("m", RANKING_SHA256, "c")
    assert not filled.is_scored_by_kl("missing", RANKING_SHA256, "c")


def test_find_samples_returns_those_measured_for_exactly_this_setting(filled: SqlRepository) -> None:
    filled.add_calibration(calibration("d"))
    filled.add_samples([sample(1), sample(2), sample(4, calibration_id="d")])
    asked = [sample(number).architecture for number in (2, 3, 4, 1)]
    found = filled.find_samples("m", RANKING_SHA256, "c", asked)
    assert list(found.items()) == [(s.architecture, s.metrics) for s in (sample(2), sample(1))]
    assert filled.find_samples("m", WEIGHTS_SHA256, "c", asked) == {}


def test_more_samples_than_one_statement_takes(filled: SqlRepository) -> None:
    samples = [sample(number) for number in range(1, 2 * LOOKUP_CHUNK + 2)]
    assert filled.add_samples(samples) == len(samples)
    found = filled.find_samples("m", RANKING_SHA256, "c", [s.architecture for s in samples])
    assert found == {s.architecture: s.metrics for s in samples}


def test_floats_come_back_to_the_last_bit(filled: SqlRepository) -> None:
    exact = dataclasses.replace(sample(1), metrics=Metrics(math.pi, 5e-324, 1 / 3, 2**40, 2**41), seconds=0.1 + 0.2)
    filled.add_samples([exact])
    assert filled.list_samples("m") == [exact]


def test_agreement_is_stored_where_it_was_measured(filled: SqlRepository) -> None:
    samples = [sample(1), sample(2, has_agreement=False), sample(3)]
    assert filled.add_samples(samples) == 3
    assert filled.list_samples("m") == samples
    found = filled.find_samples("m", RANKING_SHA256, "c", [s.architecture for s in samples])
    assert [metrics.agreement for metrics in found.values()] == [1 - 1 / 2**20, None, 1 - 3 / 2**20]


def test_protocols_tell_samples_apart(filled: SqlRepository) -> None:
    plain, repaired = sample(1), dataclasses.replace(sample(1), protocol=PROTOCOL, metrics=sample(2).metrics)
    assert filled.add_samples([plain, repaired, repaired]) == 2
    assert filled.list_samples("m") == [plain]
    assert filled.list_samples("m", protocol=PROTOCOL) == [repaired]
    assert filled.count_samples("m") == 2
    key = ("m", RANKING_SHA256, "c", [plain.architecture])
    assert filled.find_samples(*key) == {plain.architecture: plain.metrics}
    assert filled.find_samples(*key, protocol=PROTOCOL) == {plain.architecture: repaired.metrics}
    assert filled.find_samples(*key, protocol='[{"step":"reconstruction"}]') == {}
    for act in (
        lambda: filled.add_samples([dataclasses.replace(plain, protocol="bias")]),
        lambda: filled.find_samples(*key, protocol="bias"),
    ):
        with pytest.raises(InputError, match="one spelling"):
            act()


def test_any_architecture_is_a_sample(filled: SqlRepository) -> None:
    architectures = [
        ANATOMY.architecture((8, 64), (1, 2)),
        ANATOMY.architecture((8, 64)),
        Architecture.of({Site(0, Sublayer.FFN): Option(8, bits=4, density=0.5)}),
    ]
    samples = [dataclasses.replace(sample(n), architecture=a) for n, a in enumerate(architectures, start=1)]
    assert filled.add_samples(samples) == 3
    assert filled.list_samples("m") == samples
    found = filled.find_samples("m", RANKING_SHA256, "c", architectures[::-1])
    assert list(found.items()) == [(s.architecture, s.metrics) for s in reversed(samples)]
    foreign = Architecture.of({Site(2, Sublayer.FFN): Option(8)})
    for act in (
        lambda: filled.add_samples([sample(4), dataclasses.replace(sample(5), architecture=foreign)]),
        lambda: filled.find_samples("m", RANKING_SHA256, "c", [foreign]),
    ):
        with pytest.raises(InputError, match="an architecture names sites of its model"):
            act()
    assert filled.count_samples("m") == 3


@pytest.mark.parametrize("field", ["kl", "nll", "accuracy", "agreement"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_metrics_must_be_finite(filled: SqlRepository, value: float, field: str) -> None:
    changed: dict[str, Any] = {field: value}
    broken = dataclasses.replace(sample(2), metrics=dataclasses.replace(sample(2).metrics, **changed))
    with pytest.raises(InputError, match=r"finite.*'units': 16"):
        filled.add_samples([sample(1), broken])
    assert filled.count_samples("m") == 0


@pytest.mark.parametrize("field", ["model_id", "calibration_id", "ranking_sha256"])
def test_what_a_sample_refers_to_must_be_stored(filled: SqlRepository, field: str) -> None:
    missing: dict[str, Any] = {field: "missing"}
    with pytest.raises(NotFoundError, match="'missing'"):
        filled.add_samples([sample(1), dataclasses.replace(sample(2), **missing)])
    assert filled.count_samples("m") == 0


def test_threads_with_overlapping_samples_lose_and_double_none(filled: SqlRepository) -> None:
    # Half of the threads go through the numbers backwards: rows locked in opposite orders are what deadlocks.
    numbers = list(range(1, 201))
    orders = [numbers if thread % 2 else numbers[::-1] for thread in range(6)]

    def write(order: list[int]) -> int:
        batches = [order[start : start + 40] for start in range(0, len(order), 40)]
        return sum(filled.add_samples([sample(number) for number in batch]) for batch in batches)

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(write, orders)) == 200
    stored = filled.list_samples("m")
    assert sorted(stored, key=lambda s: s.metrics.kl) == [sample(number) for number in numbers]
