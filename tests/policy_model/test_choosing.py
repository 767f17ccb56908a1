"""What takes part in a choice: the best configurations measured near by, beside whatever a policy proposes."""

import numpy as np
import torch

from policy_model.choosing import EXPLORING, Parts
from policy_model.costs import DecisionCosts, parameter_costs
from policy_model.elites import Elites
from policy_model.policy import Policy
from policy_model.predictor import Predictor
from pruning.anatomy.anatomy import ModelAnatomy
from storage.records import Sample
from tests.policy_model.test_predictor import limits_of, planned_widths

KEPT = (0.38, 0.55, 0.67)
"""Parts of the FFN channels that budgets allow: where the samples were searched."""


def test_no_plan_is_expected_to_be_worse_than_the_best_that_was_measured_near_by(
    predictor: Predictor, anatomy: ModelAnatomy, samples: list[Sample]
) -> None:
    """Not even where the policy proposes anything; without the measured ones such a policy's plans are."""
    torch.manual_seed(3)
    untaught = {name: p.numpy() for name, p in Policy(predictor.config).state_dict().items()}
    dense = [layer.ffn_width for layer in anatomy.layers]
    measured = [anatomy.ffn_widths(sample.architecture) for sample in samples]

    def behind(planner: Predictor, kept: float) -> float:
        """Log KL of the plan above that of the best measured configuration that fits, both by the values."""
        fits = [widths for widths in measured if 0.0 <= kept - sum(widths) / sum(dense) < 0.03]
        limits = limits_of(anatomy, int(kept * anatomy.ffn_parameters))
        fractions = planner.encoding.kept_fractions([planned_widths(planner, anatomy, limits), *fits])
        planned, *best = planner.values(fractions).tolist()
        return float(planned - min(best))

    alone = predictor.with_parts(Parts(ways=False, walkers=0), untaught)
    assert max(behind(alone, kept) for kept in KEPT) > 0.15
    for parts in (Parts(), Parts(walkers=0)):
        planner = predictor.with_parts(parts, untaught)
        assert max(behind(planner, kept) for kept in KEPT) < 0.05
    assert max(behind(predictor, kept) for kept in KEPT) < 0.05


def test_ways_lead_from_what_just_fits_to_what_just_does_not() -> None:
    """Decisions of 10 a step; the higher end saves most at the second, which is taken first and given up last."""
    elites = Elites(np.array([[3, 3, 3], [3, 3, 0], [1, 1, 1], [1, 1, 0], [0, 0, 0]]), np.arange(5.0))
    costs = DecisionCosts(np.array([[[0, 10, 20, 30]] * 3], dtype=np.int64))
    own = np.array([[0.3, 0.2, 0.1, 0.0], [3.0, 2.0, 1.0, 0.0], [0.03, 0.02, 0.01, 0.0]])

    def ways(slack: int) -> list[list[int]]:
        found: list[list[int]] = elites.between(costs, np.array([slack]), own).tolist()
        return found

    # 30 is within 50, and nothing else is within a sixteenth of that; 60 is beyond it.
    assert ways(50) == [[1, 3, 1], [1, 3, 0]]
    assert ways(60) == [[3, 3, 0]] * 3  # the end that fits; to the dense one nothing fits more
    assert ways(35) == [[1, 1, 1], [1, 1, 1], [1, 1, 0]]  # 5 of 90 are left: near enough to be an answer itself
    assert ways(90) == [[3, 3, 3]]  # everything fits: there are no ways
    assert ways(190) == []
    assert elites.between(costs, np.array([-1]), own).shape == (0, 3)
    # A second limit that nothing comes near changes nothing, nor one that nothing costs anything of.
    for other in (np.array([[0, 1, 2, 3]] * 3), np.zeros((3, 4))):
        two = DecisionCosts(np.stack([costs.excess[0], other.astype(np.int64)]))
        assert elites.between(two, np.array([50, 10**6]), own).tolist() == ways(50)


def test_a_request_takes_ways_and_is_thorough_and_a_search_is_quick(
    predictor: Predictor, anatomy: ModelAnatomy
) -> None:
    chooser, table = predictor._chooser, predictor._chooser.space_values
    costs = parameter_costs(predictor.encoding)
    slack = np.array([int(0.45 * anatomy.ffn_parameters) - predictor.encoding.least_parameters], dtype=np.int64)
    ways = Elites.of(predictor.values).between(costs, slack, table.own)
    assert len(ways) > 0
    candidates = {tuple(row) for row in chooser._candidates(costs, slack, table).tolist()}
    assert {tuple(row) for row in ways.tolist()} <= candidates
    without = predictor.with_parts(Parts(ways=False))._chooser
    assert {tuple(row) for row in without._candidates(costs, slack, table).tolist()} < candidates
    assert not table.quick
    assert predictor._explorer.space_values.quick
    assert predictor._explorer.parts == EXPLORING
