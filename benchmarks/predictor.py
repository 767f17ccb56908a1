"""The predictor: the quality of its plans, how well it knows it, how fast it is, and whether budgets hold.

Learns from the samples in reference/search/trained.csv, which `benchmarks.collect` searched, and is judged on targets
that are in that file's searches and on seven that are not (held_out.csv; the rounds kept away from them). Of the
samples in the latter none was trained on but the one-layer scan, which is in both files and in no held-out figure.
Every plan comes from the service's planner. KLs of plans are of the validation conversations, but where they are held
against intervals of the calibration conversations, and of new draws against those of unseen ones. Ablations are
judged by the predictor's own values.

`--parts` runs some of it only, and writes to a file of its own. Predictors and finished parts are kept in
benchmarks/.work: a run that was killed goes on (`--fresh` forgets).
"""

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from statistics import geometric_mean
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks import ablations, latency, serving, truth, truth_subjects, unseen
from benchmarks.collect import (
    EVALUATIONS,
    HELD_OUT_FILE,
    HELD_OUT_TARGETS,
    SAMPLES_DIR,
    TRAINED_FILE,
    TRAINED_TARGETS,
)
from benchmarks.flap_statistics import flap_statistics
from benchmarks.intervals import bias_of_other_methods, coverage_of_plans
from benchmarks.learned import Learned
from benchmarks.machine import RESULTS_DIR, write_results
from benchmarks.steps import Steps, alone_in
from benchmarks.stored_samples import read_samples
from benchmarks.subject import MODEL_ID, REFERENCE, WORK_DIR, Subject
from lop.console.pictures import draw_comparison
from policy_model.predictor import Predictor
from pruning.allocators.methods import Method
from pruning.checkpoints.loading import load_model
from pruning.errors import DatasetError
from pruning.planning.ffn_spaces import ffn_widths
from pruning.planning.plan import PruningPlan
from pruning.planning.ranking import Ranking
from pruning.planning.target import ffn_parameter_limits
from service.planner import Planner
from service.predictor_cache import PredictorCache
from service.schemas import PlanRequest
from storage.contract import Repository
from storage.records import Sample
from values.kl_floor import log_kl

METHODS = (Method.LOP, Method.ADDITIVE_DP, Method.UNIFORM, Method.FLAP)
BASELINES = (Method.ADDITIVE_DP, Method.UNIFORM, Method.FLAP)
SEARCHED = "mcts"
TRAINING_SEEDS = (0, 1, 2)

_Measured = tuple[dict[str, Any], list[dict[str, Any]]]
"""A summary and its rows."""


class Part(StrEnum):
    """What can be measured on its own."""

    QUALITY = "quality"
    ABLATIONS = "ablations"
    SERVING = "serving"
    TRUTH = "truth"
    LATENCY = "latency"
    UNSEEN = "unseen"


def main(
    parts: Annotated[list[Part] | None, typer.Option(help="Only these.")] = None,
    requests: Annotated[int, typer.Option(min=100, help="Random requests that are checked.")] = truth.NUM_REQUESTS,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an interrupted run left.")] = False,
) -> None:
    """Write results/predictor.json and predictor.png."""
    wanted = list(parts or Part)
    folder = WORK_DIR / "predictor"
    with alone_in(folder) as lock:
        if fresh:
            shutil.rmtree(folder / "steps", ignore_errors=True)
            for learned in folder.glob("learned-*"):
                shutil.rmtree(learned)
        run = _Run(folder, requests)
        steps = Steps(folder / "steps", lock=lock)
        done = [
            steps.call(part.value, [run.key, str(requests)], partial(run.measure, part))
            for part in Part
            if part in wanted
        ]
    summary: dict[str, Any] = {"search_evaluations": EVALUATIONS}
    for step in done:
        summary |= step.document["summary"]
    summary["holds"] = _holds(summary)
    summary["minutes"] = sum(step.seconds for step in done) / 60
    rows = [row for step in done for row in step.document["rows"]]
    if curves := [row for row in rows if row["part"] == Part.QUALITY]:
        draw_comparison(_curves(curves), RESULTS_DIR / "predictor.png")
    whole = set(wanted) == set(Part)
    name = "predictor" if whole else "predictor-" + "-".join(sorted(set(wanted)))
    earlier = [step.code for step in done]
    path = write_results(name, summary, rows, runs=(*serving.RUNS, *truth.RUNS), earlier=earlier)
    print(json.dumps({**summary, "results": str(path)}))  # noqa: T201


class _Run:
    """What the parts share; each measures on a database of its own.

    Args:
        folder: in which predictors are kept.
        requests: random ones that are checked.
    """

    def __init__(self, folder: Path, requests: int) -> None:
        self._requests = requests
        self._subject = Subject(REFERENCE, None, fresh=False)
        trained = read_samples(SAMPLES_DIR / TRAINED_FILE, self._subject)
        self._trained = [sample for _, sample in trained]
        self._held_out = [sample for _, sample in read_samples(SAMPLES_DIR / HELD_OUT_FILE, self._subject)]
        contents = [(SAMPLES_DIR / name).read_bytes() for name in (TRAINED_FILE, HELD_OUT_FILE)]
        self.key = hashlib.sha256(b"".join(contents)).hexdigest()
        self._learned = Learned(folder, trained, self.key)

    def measure(self, part: Part) -> dict[str, Any]:
        """{"summary", "rows"} of one part."""
        summary, rows = {
            Part.QUALITY: self._quality,
            Part.UNSEEN: self._unseen,
            Part.ABLATIONS: self._ablations,
            Part.SERVING: self._serving,
            Part.TRUTH: self._truth,
            Part.LATENCY: self._latency,
        }[part]()
        return {"summary": summary, "rows": [{"part": part.value, **row} for row in rows]}

    def _quality(self) -> _Measured:
        subject = self._subject
        predictor = self._learned.predictor(TRAINING_SEEDS[0])
        with self._learned.repository(TRAINING_SEEDS[0]) as (repository, _):
            rows = _quality(repository, subject, self._trained, self._held_out)
            known = {subject.widths(sample) for sample in self._trained}
            targets = (*TRAINED_TARGETS, *HELD_OUT_TARGETS)
            others = bias_of_other_methods(_planner(repository), subject, targets, known)
        summary = {
            "training_seconds": self._learned.training_seconds(TRAINING_SEEDS[0]),
            **_summary_of_quality(rows),
            **_knowledge(predictor.of_calibration(), subject, self._trained, self._held_out),
            **others,
            **_before_rounds(subject, self._learned.of_searches_alone(), self._held_out),
        }
        return summary, rows

    def _unseen(self) -> _Measured:
        predictors = [self._learned.predictor(seed) for seed in TRAINING_SEEDS]
        if any(predictor.unseen is None for predictor in predictors):
            raise DatasetError(
                "expectations of unseen conversations are learnt from samples by fold",
                values=f"{TRAINED_FILE} has none",
                remedy="Collect them again with `python -m benchmarks.collect`",
            )
        rows, summary = unseen.unseen_coverage(predictors, self._subject, (*TRAINED_TARGETS, *HELD_OUT_TARGETS))
        return summary, rows

    def _ablations(self) -> _Measured:
        rows, summary = ablations.measure(self._learned.predictor(TRAINING_SEEDS[0]), self._subject.anatomy)
        return summary, rows

    def _serving(self) -> _Measured:
        with self._learned.repository(TRAINING_SEEDS[0]) as (repository, url):
            served = serving.measure_serving(repository, url, MODEL_ID)
        searched = [sample.seconds for sample in self._trained if sample.source == SEARCHED]
        p50 = served["http_p50_ms_reference"]
        served["speedup_vs_search_reference"] = float(np.mean(searched)) * EVALUATIONS / p50 * 1e3
        served["speedup_vs_flap_reference"] = _flap_seconds(self._subject) / p50 * 1e3
        return served, []

    def _truth(self) -> _Measured:
        with self._learned.repository(TRAINING_SEEDS[0]) as (repository, url), TemporaryDirectory() as folder:
            subjects = [
                truth_subjects.TruthSubject(MODEL_ID, REFERENCE / "model", 0.95, is_whole=True),
                truth_subjects.register_large(repository, Path(folder) / "large"),
            ]
            truth_subjects.register_machine(repository, subjects[0])
            rows, found = truth.measure_truth(url, subjects, num_requests=self._requests)
        names = ("budget_violations", "disk_bytes_error", "cost_errors", "memory_bounds_exceeded")
        return {**{name: found[name] for name in names}, "truth": found}, rows

    def _latency(self) -> _Measured:
        rows, summary = latency.measure()
        return summary, rows


def _flap_seconds(subject: Subject) -> float:
    """Of FLAP's statistics of all calibration conversations on the reference; allocating takes milliseconds."""
    model = load_model(REFERENCE / "model")
    started = time.perf_counter()
    flap_statistics(model, subject.batches("all"))
    return time.perf_counter() - started


def _planner(repository: Repository) -> Planner:
    return Planner(repository, PredictorCache(repository, capacity=2))


def _quality(
    repository: Repository, subject: Subject, trained: Sequence[Sample], held_out: Sequence[Sample]
) -> list[dict[str, Any]]:
    """A row a method and target: the plans of the service, and the best that the search found there."""
    planner = _planner(repository)
    rows = []
    for sparsity in sorted((*TRAINED_TARGETS, *HELD_OUT_TARGETS)):
        in_training = sparsity in TRAINED_TARGETS
        for method in METHODS:
            plan = planner.plan(PlanRequest(model=MODEL_ID, sparsity=sparsity, method=method))
            ranking = _ranking(repository, plan) if plan.ranking.sha256 != subject.ranking.sha256 else None
            rows.append(
                _measured(subject, method.value, sparsity, plan.ffn_widths(subject.anatomy), in_training, ranking)
            )
            if plan.predicted is not None:
                rows[-1]["predicted"] = plan.predicted.model_dump(mode="json")
        best = _best_found(subject, trained if in_training else held_out, sparsity)
        rows.append(_measured(subject, SEARCHED, sparsity, subject.widths(best), in_training, None))
    return rows


def _best_found(subject: Subject, samples: Sequence[Sample], sparsity: float) -> Sample:
    """What a search would choose: of the least score among those that meet the target."""
    budget = subject.budget(sparsity, 8)
    return min(
        (sample for sample in samples if subject.kept_parameters(subject.widths(sample), None) <= budget),
        key=lambda sample: sample.metrics.score,
    )


def _measured(
    subject: Subject,
    method: str,
    sparsity: float,
    widths: tuple[int, ...],
    in_training: bool,
    ranking: Ranking | None,
) -> dict[str, Any]:
    calibration = subject.evaluate("calibration", widths, ranking)
    validation = subject.evaluate("validation", widths, ranking)
    return {
        "method": method,
        "sparsity": sparsity,
        "in_training": in_training,
        "calibration_kl": calibration.kl,
        "validation_kl": validation.kl,
        "validation_accuracy": validation.accuracy,
        "validation_agreement": validation.agreement,
        "parameters": subject.kept_parameters(widths, ranking),
        "widths": list(widths),
    }


def _ranking(repository: Repository, plan: PruningPlan) -> Ranking:
    return Ranking.from_bytes(repository.get_artifact(plan.ranking.sha256).content)


def _summary_of_quality(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    kl = {(row["method"], row["sparsity"]): row["validation_kl"] for row in rows}
    ratios = {s: kl[Method.LOP.value, s] / kl[SEARCHED, s] for s in (*TRAINED_TARGETS, *HELD_OUT_TARGETS)}
    worse = [
        f"{sparsity:g}: {baseline}"
        for sparsity in sorted(ratios)
        for baseline in BASELINES
        if kl[Method.LOP.value, sparsity] > kl[baseline.value, sparsity]
    ]
    to_best = {
        s: kl[Method.LOP.value, s] / min(kl[SEARCHED, s], kl[Method.ADDITIVE_DP.value, s]) for s in HELD_OUT_TARGETS
    }
    return {
        "validation_ratio_new_targets": geometric_mean(to_best.values()),
        "validation_ratio_new_targets_worst": max(to_best.values()),
        "validation_ratios_new_targets": {f"{s:g}": ratio for s, ratio in to_best.items()},
        "kl_ratio_trained_targets": geometric_mean(ratios[s] for s in TRAINED_TARGETS),
        "kl_ratio_new_targets": geometric_mean(ratios[s] for s in HELD_OUT_TARGETS),
        "targets_worse_than_baseline": len({text.split(":")[0] for text in worse}),
        "worse_than_baseline": worse,
        "kl_ratios": {f"{s:g}": ratios[s] for s in sorted(ratios)},
    }


def _knowledge(
    predictor: Predictor, subject: Subject, trained: Sequence[Sample], held_out: Sequence[Sample]
) -> dict[str, Any]:
    """How well it judges configurations that it never saw, those of a search and its own plans.

    Held-out samples lie at a few sparsities, whose order alone makes a high rank correlation: it is also told target by
    target.
    """
    known = {sample.architecture for sample in trained}
    unseen = [sample for sample in held_out if sample.source == SEARCHED and sample.architecture not in known]
    truth_kl = np.array([sample.metrics.kl for sample in unseen])
    fractions = predictor.encoding.kept_fractions([subject.widths(sample) for sample in unseen])
    mean = predictor.values(fractions)
    judged = [predictor.judge(sample.architecture) for sample in unseen]
    inside = [x.interval[0] <= kl <= x.interval[1] for x, kl in zip(judged, truth_kl, strict=True)]
    accurate = [
        low <= sample.metrics.accuracy <= high
        for x, sample in zip(judged, unseen, strict=True)
        for low, high in [x.accuracy_interval or (0.0, 0.0)]  # the reference gives answers exactly: there is one
    ]
    errors = np.abs(mean - [log_kl(kl) for kl in truth_kl])
    return {
        "interval_coverage": float(np.mean(inside)),
        "accuracy_interval_coverage": float(np.mean(accurate)),
        **coverage_of_plans(predictor, subject),
        "value_spearman": _spearman(mean, truth_kl),
        "value_spearman_within_targets": _within_targets(unseen, subject, mean, truth_kl),
        "value_mean_absolute_error_log_kl": float(errors.mean()),
        "held_out_samples": len(unseen),
    }


def _within_targets(
    samples: Sequence[Sample], subject: Subject, predicted: "np.ndarray[Any, Any]", measured: "np.ndarray[Any, Any]"
) -> dict[str, float]:
    """Rank correlation among the samples of each sparsity, by the sparsity."""
    kept = np.array([subject.kept_parameters(subject.widths(sample), None) for sample in samples])
    total = subject.anatomy.ffn_parameters
    return {
        f"{1.0 - value / total:.3f}": _spearman(predicted[kept == value], measured[kept == value])
        for value in np.unique(kept)
        if (kept == value).sum() > 20
    }


def _before_rounds(subject: Subject, predictor: Predictor, held_out: Sequence[Sample]) -> dict[str, Any]:
    """What the predictor of the searches alone reaches at the targets left out: what the rounds gained."""
    space = ffn_widths(subject.anatomy, round_to=8)
    ratios = []
    for sparsity in HELD_OUT_TARGETS:
        limits = ffn_parameter_limits(subject.anatomy, space, subject.budget(sparsity, 8))
        widths = subject.anatomy.ffn_widths(predictor.plan(subject.anatomy, limits).architecture)
        best = subject.anatomy.ffn_widths(_best_found(subject, held_out, sparsity).architecture)
        ratios.append(subject.evaluate("validation", widths).kl / subject.evaluate("validation", best).kl)
    return {"kl_ratio_new_targets_before_rounds": geometric_mean(ratios)}


def _curves(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    shown = ("kl", "accuracy", "agreement")
    return [row | {name: row[f"validation_{name}"] for name in shown} for row in rows]


def _spearman(a: "np.ndarray[Any, Any]", b: "np.ndarray[Any, Any]") -> float:
    """Rank correlation; KLs that are measured do not tie but by chance."""
    ranks = [np.argsort(np.argsort(x)).astype(np.float64) for x in (a, b)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _holds(summary: dict[str, Any]) -> dict[str, bool]:
    """What was measured against what has to hold."""
    bounds: dict[str, tuple[float, float]] = {
        "kl_ratio_trained_targets": (0.0, 1.05),
        "kl_ratio_new_targets": (0.0, 1.10),
        "validation_ratio_new_targets": (0.0, 1.0),
        "validation_ratio_new_targets_worst": (0.0, 1.1),
        "targets_worse_than_baseline": (0, 0),
        "policy_alone_vs_full": (0.0, 1.05),
        "untrained_policy_alone_vs_full": (1.2, float("inf")),
        "http_p50_ms_reference": (0.0, 15.0),
        "http_p50_ms_32_layers": (0.0, 40.0),
        "speedup_vs_flap": (1e3, float("inf")),
        "speedup_vs_search": (1e4, float("inf")),
        "budget_violations": (0, 0),
        "disk_bytes_error": (0, 0),
        "cost_errors": (0, 0),
        "memory_bounds_exceeded": (0, 0),
        "latency_mape": (0.0, 0.10),
        "interval_coverage": (0.85, 0.95),
        "accuracy_interval_coverage": (0.85, 0.95),
        "interval_coverage_of_plans": (0.85, 0.95),
        "accuracy_interval_coverage_of_plans": (0.85, 0.95),
        "value_spearman": (0.95, 1.0),
        "validation_coverage_kl": (0.82, 0.97),
        "validation_coverage_accuracy": (0.82, 0.97),
        "bias_kl": (0.9, 1.1),
    }
    return {name: low <= summary[name] <= high for name, (low, high) in bounds.items() if name in summary}


if __name__ == "__main__":
    typer.run(main)
