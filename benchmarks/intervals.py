"""How often predicted intervals hold what is measured of the predictor's own plans, and how far off other methods' are.

All at random budgets, of which none was searched, and none those that the form of the intervals was chosen on.
"""

from collections.abc import Sequence
from statistics import geometric_mean
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.subject import MODEL_ID, Subject
from pruning.allocators.methods import Method
from pruning.planning.ffn_spaces import ffn_widths
from pruning.planning.target import ffn_parameter_limits
from service.planner import Planner
from service.schemas import PlanRequest

if TYPE_CHECKING:
    from policy_model.predictor import Predictor

NUM_JUDGED_PLANS = 200
NUM_OTHER_BUDGETS = 30
SMALLEST_SPARSITY, LARGEST_SPARSITY = 0.1, 0.78
ROUND_TO = 8
JUDGED_SEED, OTHERS_SEED = 2026, 2027
OTHER_METHODS = (Method.UNIFORM, Method.ADDITIVE_DP)
"""Those that keep channels by the model's own ranking, and decide without a search."""


def coverage_of_plans(predictor: "Predictor", subject: Subject) -> dict[str, Any]:
    """Shares of the predictor's own plans whose measured calibration KL and accuracy lie in their intervals."""
    space = ffn_widths(subject.anatomy, round_to=ROUND_TO)
    inside, accurate = [], []
    for sparsity in _sparsities(JUDGED_SEED, NUM_JUDGED_PLANS):
        limits = ffn_parameter_limits(subject.anatomy, space, subject.budget(sparsity, ROUND_TO))
        prediction = predictor.plan(subject.anatomy, limits)
        measured = subject.evaluate("calibration", subject.anatomy.ffn_widths(prediction.architecture))
        inside.append(_holds(prediction.interval, measured.kl))
        assert prediction.accuracy_interval is not None  # the reference gives answers exactly
        accurate.append(_holds(prediction.accuracy_interval, measured.accuracy))
    return {
        "interval_coverage_of_plans": float(np.mean(inside)),
        "accuracy_interval_coverage_of_plans": float(np.mean(accurate)),
        "judged_plans": NUM_JUDGED_PLANS,
    }


def bias_of_other_methods(
    planner: Planner, subject: Subject, targets: Sequence[float], known: set[tuple[int, ...]]
) -> dict[str, Any]:
    """Calibration KL over what the service expects of the plans that `OTHER_METHODS` make, without an interval: at
    `targets` and at `NUM_OTHER_BUDGETS` random sparsities each. Configurations that are `known`, having been trained
    on, are not judged.

    Of each method the geometric mean, the least and the greatest ratio.
    """
    found: dict[Method, dict[tuple[int, ...], float]] = {method: {} for method in OTHER_METHODS}
    for sparsity in (*targets, *_sparsities(OTHERS_SEED, NUM_OTHER_BUDGETS)):
        for method in OTHER_METHODS:
            plan = planner.plan(PlanRequest(model=MODEL_ID, sparsity=sparsity, method=method, round_to=ROUND_TO))
            widths = plan.ffn_widths(subject.anatomy)
            if widths not in known:
                assert plan.predicted is not None, plan.provenance.note
                found[method][widths] = subject.evaluate("calibration", widths).kl / plan.predicted.quality
    return {
        "kl_over_predicted_of_other_methods": {
            method.value: [geometric_mean(ratios.values()), min(ratios.values()), max(ratios.values())]
            for method, ratios in found.items()
        },
        "judged_plans_of_other_methods": sum(map(len, found.values())),
    }


def _sparsities(seed: int, count: int) -> list[float]:
    drawn = np.random.default_rng(seed).uniform(SMALLEST_SPARSITY, LARGEST_SPARSITY, count)
    return [float(sparsity) for sparsity in drawn]


def _holds(interval: Sequence[float], measured: float) -> bool:
    return interval[0] <= measured <= interval[1]
