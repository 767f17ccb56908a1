"""How often predicted intervals hold what is measured: of the predictor's own plans, and of other methods'.

All at random budgets, of which none was searched, and none those that the form of the intervals was chosen on.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.subject import MODEL_ID, Subject
from pruning.allocators.methods import Method
from pruning.measuring.metrics import Metrics
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


def coverage_of_other_methods(
    planner: Planner, subject: Subject, targets: Sequence[float], known: set[tuple[int, ...]]
) -> dict[str, Any]:
    """The same of the plans that `OTHER_METHODS` make, as the service predicts them: at `targets` and at
    `NUM_OTHER_BUDGETS` random sparsities each. Configurations that are `known`, having been trained on, are not judged.

    `interval_coverage_by_method` is that of KL, which `other_methods_below_interval` times was less than its interval.
    """
    found: dict[Method, dict[tuple[int, ...], tuple[bool, bool, bool]]] = {method: {} for method in OTHER_METHODS}
    for sparsity in (*targets, *_sparsities(OTHERS_SEED, NUM_OTHER_BUDGETS)):
        for method in OTHER_METHODS:
            plan = planner.plan(PlanRequest(model=MODEL_ID, sparsity=sparsity, method=method, round_to=ROUND_TO))
            widths = plan.ffn_widths(subject.anatomy)
            if widths not in known:
                predicted = plan.predicted
                assert predicted is not None, plan.provenance.note
                assert predicted.interval is not None
                assert predicted.accuracy_interval is not None
                measured: Metrics = subject.evaluate("calibration", widths)
                found[method][widths] = (
                    _holds(predicted.interval, measured.kl),
                    _holds(predicted.accuracy_interval, measured.accuracy),
                    measured.kl < predicted.interval[0],
                )
    judged = [outcome for of_method in found.values() for outcome in of_method.values()]
    inside, accurate, below = np.array(judged).T
    return {
        "interval_coverage_of_other_methods": float(inside.mean()),
        "accuracy_interval_coverage_of_other_methods": float(accurate.mean()),
        "judged_plans_of_other_methods": len(judged),
        "interval_coverage_by_method": {
            method.value: float(np.mean([kl for kl, _, _ in outcomes.values()])) for method, outcomes in found.items()
        },
        "other_methods_below_interval": int(below.sum()),
    }


def _sparsities(seed: int, count: int) -> list[float]:
    drawn = np.random.default_rng(seed).uniform(SMALLEST_SPARSITY, LARGEST_SPARSITY, count)
    return [float(sparsity) for sparsity in drawn]


def _holds(interval: Sequence[float], measured: float) -> bool:
    return interval[0] <= measured <= interval[1]
