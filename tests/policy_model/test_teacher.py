"""Random problems, and the teacher that answers them: against all choices there are."""

import itertools

import numpy as np
import pytest

from policy_model.elites import Elites
from policy_model.local_search import LevelValues
from policy_model.problems import OptionSet, Problems, made_up_costs, random_problems
from policy_model.teacher import Teacher
from pruning.arrays import FloatArray, IntArray
from pruning.planning.ffn_spaces import ffn_levels
from tests.values.landscape import anatomy_of, samples_of
from values.dataset import TrainingData, training_data
from values.encoding import Encoding, encode
from values.value_training import fit_values
from values.values import Values

UNEVEN = anatomy_of([64, 32, 96, 64, 32], [3, 7, 2, 5, 4])
SPACE = ffn_levels(UNEVEN, num_levels=4, round_to=8)
SAMPLES = samples_of(UNEVEN, SPACE)
EVERY_CHOICE = np.array(list(itertools.product(range(4), repeat=5)))


@pytest.fixture(scope="module")
def encoding() -> Encoding:
    return encode(UNEVEN, SPACE, SAMPLES)


@pytest.fixture(scope="module")
def data(encoding: Encoding) -> TrainingData:
    return training_data(encoding, SAMPLES)


@pytest.fixture(scope="module")
def values(encoding: Encoding, data: TrainingData) -> Values:
    return fit_values(encoding, data).values


@pytest.fixture(scope="module")
def problems(encoding: Encoding, data: TrainingData) -> Problems:
    return random_problems(encoding, data, OptionSet.usual(encoding), 70, np.random.default_rng(0))


@pytest.fixture(scope="module")
def teacher(encoding: Encoding, values: Values) -> Teacher:
    return Teacher(LevelValues(values, encoding.fractions, quick=True), Elites.of(values))


def least(problems: Problems, log_kl: FloatArray) -> FloatArray:
    """[P] the least of `log_kl` [C] of every choice, among those that fit."""
    found = []
    for row in range(len(problems)):
        excess = problems.costs.excess[:, row]
        spent = excess[:, np.arange(5), EVERY_CHOICE].sum(axis=2).T
        found.append(log_kl[(spent <= problems.slack[row]).all(axis=1)].min())
    return np.array(found)


def fits(problems: Problems, choices: IntArray) -> bool:
    return bool((problems.costs.spent(choices) <= problems.slack).all())


def test_answers_are_the_best_choices_or_nearly(problems: Problems, teacher: Teacher) -> None:
    starts = [teacher.measured(problems), teacher.additive(problems)]
    choices, scores = teacher.solve(problems, starts)
    assert fits(problems, choices)
    np.testing.assert_allclose(scores, teacher.judge(choices), atol=1e-4)
    excess = scores - least(problems, teacher.judge(EVERY_CHOICE))
    assert excess.min() > -1e-4
    assert excess.mean() < 0.02
    # Where it begins is not good enough.
    for start in starts:
        assert fits(problems, start)
        assert (teacher.judge(start) - scores).mean() > 0.05


def test_a_step_goes_from_stair_to_stair(problems: Problems, teacher: Teacher) -> None:
    """No answer leaves on the table what costs nothing."""
    choices, _ = teacher.solve(problems, [np.zeros((len(problems), 5), dtype=np.int64)])
    free = np.take_along_axis(problems.costs.free, choices[:, :, None], axis=2)[:, :, 0]
    assert np.array_equal(choices, free)
    assert (problems.costs.free != np.arange(4)).any()


def test_problems_are_of_every_kind(problems: Problems, encoding: Encoding) -> None:
    excess, slack = problems.costs.excess, problems.slack
    assert (np.diff(excess, axis=3) >= 0).all()
    assert not excess[..., 0].any()
    assert (slack >= 0).all()
    parameters = (encoding.parameters - encoding.parameters[:, :1])[None]
    limited = [{table.tobytes() for table in excess[:, row]} for row in range(70)]
    of_parameters = np.array([parameters.astype(np.int64).tobytes() in tables for tables in limited])
    counts = np.bincount([len(tables) for tables in limited])
    assert 0.4 < of_parameters.mean() < 0.9
    assert counts[1] >= 25
    assert counts[2] >= 15
    assert counts[3] >= 5
    asked = (slack / excess[..., -1].sum(axis=2).T).min(axis=1)
    assert asked.min() < 0.25
    assert asked.max() > 0.95


def test_made_up_costs_differ_in_shape(encoding: Encoding) -> None:
    rng = np.random.default_rng(0)
    several = [made_up_costs(encoding, OptionSet.usual(encoding), rng) for _ in range(12)]
    assert len({tuple((c[0] * 100 // c[0, -1]).tolist()) for c in several}) > 4


def test_options_of_their_own_are_coarser_or_the_ends_of_stairs(encoding: Encoding) -> None:
    usual = OptionSet.usual(encoding).fractions
    found = [OptionSet.random(encoding, np.random.default_rng(seed)) for seed in range(20)]
    for options in found:
        assert (np.diff(options.fractions, axis=1) >= 0).all()
        assert (options.fractions[:, -1] == 1.0).all()
        assert (options.fractions > 0).all()
        if options.steps is None:
            # No lower than one step, which the narrowest may be below.
            assert (options.fractions[:, 1:] <= np.maximum(usual[:, 1:], options.fractions[:, :1])).all()
        else:
            assert (options.fractions >= usual - 1e-12).all()
            costs = made_up_costs(encoding, options, np.random.default_rng(0))
            same = np.diff(options.fractions, axis=1) == 0.0
            assert (np.diff(costs, axis=1)[same] == 0).all()
    assert 5 < sum(options.steps is None for options in found) < 15


def test_other_options_have_values_of_their_own(encoding: Encoding, data: TrainingData, values: Values) -> None:
    rng = np.random.default_rng(3)
    options = OptionSet.random(encoding, rng)
    table = LevelValues(values, options.fractions, quick=True)
    teacher = Teacher(table, Elites.of(values))
    problems = random_problems(encoding, data, options, 30, rng)
    choices, scores = teacher.solve(problems, [teacher.measured(problems), teacher.additive(problems)])
    mean, deviation = values.judge(table.fractions_of(choices))
    np.testing.assert_allclose(scores, mean + deviation, rtol=1e-3, atol=1e-3)
    assert (scores - least(problems, teacher.judge(EVERY_CHOICE))).mean() < 0.02
