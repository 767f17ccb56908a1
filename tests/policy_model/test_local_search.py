"""Descent over exchanges against brute force."""

from dataclasses import replace

import numpy as np
import pytest

from policy_model.costs import parameter_costs
from policy_model.local_search import (
    PESSIMISM,
    QUICK_CAUTION,
    QUICK_PESSIMISM,
    SMALLEST_GAIN,
    Descent,
    LevelValues,
    _process,
    improve,
)
from pruning.planning.ffn_spaces import ffn_levels
from tests.values.landscape import anatomy_of, samples_of
from values.dataset import TrainingData, training_data
from values.encoding import Encoding, encode
from values.value_training import fit_values
from values.values import Values, distances

UNEVEN = anatomy_of([64, 32, 96, 64, 32], [3, 7, 2, 5, 4])
SPACE = ffn_levels(UNEVEN, num_levels=4, round_to=8)
SAMPLES = samples_of(UNEVEN, SPACE)
COSTS = parameter_costs(encode(UNEVEN, SPACE, SAMPLES))
SLACK = np.array([600], dtype=np.int64)


@pytest.fixture(scope="module")
def encoding() -> Encoding:
    return encode(UNEVEN, SPACE, SAMPLES)


@pytest.fixture(scope="module")
def data(encoding: Encoding) -> TrainingData:
    return training_data(encoding, SAMPLES)


@pytest.fixture(scope="module")
def table(encoding: Encoding, data: TrainingData) -> LevelValues:
    return LevelValues(fit_values(encoding, data).values, encoding.fractions)


def start_at(table: LevelValues, levels: list[int]) -> Descent:
    row = np.array(levels)
    return Descent(row, float(table.pessimistic(row[None])[0]))


def neighbours(levels: np.ndarray, slack: np.ndarray) -> list[np.ndarray]:
    """All raises and exchanges that fit."""
    found = []
    for up in range(5):
        for down in (None, *range(5)):
            moved = levels.copy()
            moved[up] += 1
            if down is not None:
                moved[down] -= 1
            if up != down and moved.max() < 4 and moved.min() >= 0 and (COSTS.spent(moved[None])[0] <= slack).all():
                found.append(moved)
    return found


def test_one_round_finds_the_best_neighbour(table: LevelValues) -> None:
    for levels in ([3, 0, 3, 1, 0], [0, 1, 1, 2, 1], [1, 1, 1, 1, 1]):
        start = start_at(table, levels)
        found = improve(table, COSTS, [start], SLACK, 1)
        scores = table.pessimistic(np.stack(neighbours(start.levels, SLACK)))
        assert found.score == pytest.approx(min(float(scores.min()), start.score), abs=2e-3)


def test_the_process_of_an_exchange_is_that_of_the_result(table: LevelValues) -> None:
    """One matrix product over the anchors, against the covariance of each neighbour."""
    levels = np.array([1, 2, 1, 2, 1])
    process, _ = _process(table, levels)
    for up, down in ((0, 1), (4, 2), (3, 5)):
        moved = levels.copy()
        moved[up] += 1
        if down < 5:
            moved[down] -= 1
        x = table.fractions_of(moved[None])
        values = table.values
        expected = values._correlation(distances(values.basis.places(x), values.places)) @ values.faded_alpha
        assert process[up, down] == pytest.approx(float(expected[0]), rel=1e-3, abs=1e-4)


def test_descent_keeps_to_the_slack_and_ends_where_no_exchange_helps(table: LevelValues) -> None:
    start = start_at(table, [0, 0, 0, 0, 0])
    end = improve(table, COSTS, [start], SLACK, 50)
    assert end.score < start.score
    assert (COSTS.spent(end.levels[None]) <= SLACK).all()
    scores = table.pessimistic(np.stack(neighbours(end.levels, SLACK)))
    assert end.score <= float(scores.min()) + max(SMALLEST_GAIN, 2e-3)
    assert end.score == pytest.approx(float(table.pessimistic(end.levels[None])[0]), abs=1e-4)


def test_of_several_descents_the_best_end_counts(table: LevelValues) -> None:
    """Also of those that come upon each other's path, and of those that cannot go on."""
    starts = [start_at(table, levels) for levels in ([3, 0, 3, 1, 0], [0, 1, 1, 2, 1], [1, 1, 1, 1, 1])]
    for rounds in (0, 1, 2, 50):
        alone = [improve(table, COSTS, [start], SLACK, rounds).score for start in starts]
        assert improve(table, COSTS, starts, SLACK, rounds).score == min(alone)
    again = improve(table, COSTS, [starts[0], starts[0]], SLACK, 50)
    assert again.levels.tolist() == improve(table, COSTS, starts[:1], SLACK, 50).levels.tolist()


def test_a_wrong_allocation_is_put_right(table: LevelValues) -> None:
    """Layer 1 is by far the most sensitive, layer 3 hardly at all."""
    wrong = start_at(table, [3, 0, 3, 3, 3])
    slack = COSTS.spent(wrong.levels[None])[0]
    better = improve(table, COSTS, [wrong], slack, 10)
    assert better.levels[1] > 0
    assert better.score < wrong.score - 0.1


def test_the_dense_model_stays(table: LevelValues) -> None:
    dense = start_at(table, [3] * 5)
    assert improve(table, COSTS, [dense], COSTS.most_from[0], 5).levels.tolist() == [3] * 5


def test_the_tables_judge_as_the_values_do(table: LevelValues, encoding: Encoding) -> None:
    levels = np.random.default_rng(3).integers(0, 4, (20, 5))
    fractions = table.fractions_of(levels)
    known = table.values
    values = Values(known.basis, replace(known.kernel, drift=0.5), known.tensors)
    mean, deviation = values.judge(fractions)
    apart = distances(values.basis.places(fractions), values.places)
    quick = LevelValues(values, encoding.fractions, quick=True).pessimistic(levels)
    doubt = QUICK_PESSIMISM * deviation + QUICK_CAUTION * values.astray(fractions, apart)
    np.testing.assert_allclose(quick, mean + doubt, rtol=1e-4, atol=1e-4)
    thorough = values.posterior_deviation(fractions, values.basis.own_kl(fractions), apart)
    np.testing.assert_allclose(table.pessimistic(levels), mean + PESSIMISM * thorough, rtol=1e-4, atol=1e-4)


def test_a_second_descent_may_end_better(table: LevelValues) -> None:
    rng = np.random.default_rng(5)
    rows = [levels for levels in rng.integers(0, 4, (400, 5)) if (COSTS.spent(levels[None])[0] <= SLACK).all()]
    starts = sorted((start_at(table, row.tolist()) for row in rows), key=lambda start: start.score)[-40:]
    alone = [improve(table, COSTS, [start], SLACK, 2).score for start in starts]
    assert improve(table, COSTS, starts, SLACK, 2).score == min(alone) < alone[0]
