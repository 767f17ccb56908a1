"""How well expectations of unseen conversations hold: predicted intervals against draws that nothing has seen.

Every draw is as large as the calibration set and made anew by the reference's world, so that neither the search, nor
the ranking, nor the predictor, nor whoever chose their constants has seen it. Two kinds: `validation` has digits that
nothing has seen either, as the validation conversations do; `same_distribution` has digits that the model was trained
on, as the calibration conversations do. Between the two lies a shift that no calibration set can tell of.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.subject import Subject
from policy_model.predictor import Prediction, Predictor
from pruning.checkpoints.loading import load_model
from pruning.data.batches import make_batches
from pruning.data.conversations import load_conversations
from pruning.measuring.evaluation import ConfigurationEvaluator
from pruning.measuring.metrics import Metrics, Widths
from pruning.planning.ffn_spaces import ffn_widths
from pruning.planning.target import ffn_parameter_limits
from reference.dataset import write_split
from reference.scans import Pool

NUM_BUDGETS = 60
SMALLEST_SPARSITY, LARGEST_SPARSITY = 0.15, 0.75
BUDGETS_SEED = 2028
ROUND_TO = 8
DRAWS: dict[Pool, tuple[int, ...]] = {"test": (9011, 9012, 9013, 9014, 9015), "train": (9001, 9002, 9003, 9004, 9005)}
"""Seeds of the disjoint draws, by the pool of their digits."""

KINDS: dict[Pool, str] = {"test": "validation", "train": "same_distribution"}


@dataclass(frozen=True)
class Draw:
    """Conversations that nothing has seen, and what the dense model is worth on them."""

    evaluator: ConfigurationEvaluator
    dense: Metrics


def random_sparsities(avoid: Sequence[float]) -> list[float]:
    """`NUM_BUDGETS` sparsities, none within half a point of one in `avoid`."""
    rng = np.random.default_rng(BUDGETS_SEED)
    found: list[float] = []
    while len(found) < NUM_BUDGETS:
        sparsity = float(rng.uniform(SMALLEST_SPARSITY, LARGEST_SPARSITY))
        if all(abs(sparsity - other) > 0.005 for other in avoid):
            found.append(sparsity)
    return found


def unseen_coverage(
    predictors: Sequence[Predictor], subject: Subject, searched: Sequence[float]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows, and a summary with shares of measured values within their 90% intervals, and measured over predicted KL.

    `predictors` are of several training seeds; budgets are random, none of them `searched`.
    """
    plans = [
        (seed, sparsity, _plan(predictor, subject, sparsity))
        for sparsity in random_sparsities(searched)
        for seed, predictor in enumerate(predictors)
    ]
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        for pool, seeds in DRAWS.items():
            for seed in seeds:
                draw = _draw(subject, Path(folder) / f"{pool}-{seed}", pool, seed)
                known: dict[Widths, Metrics] = {}
                for training_seed, sparsity, prediction in plans:
                    widths = subject.anatomy.ffn_widths(prediction.architecture)
                    if widths not in known:
                        known[widths] = draw.evaluator.evaluate(widths)
                    row = {"kind": KINDS[pool], "draw": seed, "training_seed": training_seed, "sparsity": sparsity}
                    rows.append(row | _judged(prediction, known[widths], draw.dense, predictors[training_seed]))
    return rows, _summary(rows)


def _plan(predictor: Predictor, subject: Subject, sparsity: float) -> Prediction:
    space = ffn_widths(subject.anatomy, round_to=ROUND_TO)
    return predictor.plan(
        subject.anatomy, ffn_parameter_limits(subject.anatomy, space, subject.budget(sparsity, ROUND_TO))
    )


def _draw(subject: Subject, folder: Path, pool: Pool, seed: int) -> Draw:
    write_split(folder, "test", seed, subject.num_conversations, pool=pool)
    batches = make_batches(load_conversations(folder / "test.json"), subject.processor)
    evaluator = ConfigurationEvaluator(load_model(subject.folder), batches, subject.ranking, cache_bytes=0)
    return Draw(evaluator, evaluator.evaluate(evaluator.dense_widths))


def _judged(prediction: Prediction, measured: Metrics, dense: Metrics, predictor: Predictor) -> dict[str, Any]:
    """Exact match is promised relative to the dense model, whose own is the user's to measure."""
    assert prediction.accuracy_interval is not None  # the reference gives answers exactly
    assert predictor.unseen is not None
    accuracy = measured.accuracy + predictor.unseen.dense_accuracy - dense.accuracy
    return {
        "predicted_kl": prediction.kl,
        "kl": measured.kl,
        "kl_holds": _holds(prediction.interval, measured.kl),
        "predicted_accuracy": prediction.accuracy,
        "accuracy": accuracy,
        "accuracy_holds": _holds(prediction.accuracy_interval, accuracy),
        "interval_ratio": prediction.interval[1] / prediction.interval[0],
    }


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for kind in KINDS.values():
        found = [row for row in rows if row["kind"] == kind]
        for name in ("kl", "accuracy"):
            summary[f"{kind}_coverage_{name}"] = _share(found, f"{name}_holds")
            by_draw = {str(d): _share([x for x in found if x["draw"] == d], f"{name}_holds") for d in _draws(found)}
            summary[f"{kind}_coverage_{name}_by_draw"] = by_draw
        bias = "bias_kl" if kind == "validation" else f"{kind}_bias_kl"
        summary[bias] = geometric_mean(row["kl"] / row["predicted_kl"] for row in found)
    summary["median_interval_ratio"] = float(np.median([row["interval_ratio"] for row in rows]))
    return summary


def _share(rows: Sequence[dict[str, Any]], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


def _draws(rows: Sequence[dict[str, Any]]) -> list[int]:
    return sorted({row["draw"] for row in rows})


def _holds(interval: Sequence[float], measured: float) -> bool:
    return interval[0] <= measured <= interval[1]
