"""One search request from start to end: the one-layer scan if the method needs it, then every target in turn.

Everything measured is in the repository the moment it is known, so a search that was killed is simply run again: it
reads what it had, decides the same, and goes on where it stopped.
"""

from collections.abc import Callable, Sequence

import numpy as np

from engines.memo import EvaluateInOrder, MemoisedEvaluator
from mcts.bits_alone import BitsAlone
from mcts.prior import Guide
from mcts.progress import Progress, silent
from mcts.result import SearchResult, TargetResult
from mcts.search import SharedKnowledge, TargetSearch, known_samples
from mcts.sensitivity import MAX_SCAN_EVALUATIONS, SENSITIVITY_SOURCE, scan_choices, scan_sensitivity
from mcts.settings import SearchMethod, SearchSettings
from mcts.targets import SearchTarget
from pruning.allocators.evolution import Score, evolve
from pruning.allocators.random_search import search_randomly
from pruning.measuring.metrics import Metrics
from pruning.planning.axis_spaces import SpaceName
from pruning.planning.latency_model import LatencyModel
from pruning.planning.limits import Limits
from pruning.planning.space import Choice
from storage.contract import Repository
from storage.records import Sample
from values.surrogate import retentions

OnEvaluation = Callable[[int, Metrics], None]
"""Told, after each evaluation of a target, how many there were and the metrics of the least score so far."""


def run_search(
    repository: Repository,
    model_id: str,
    calibration_id: str,
    evaluate: EvaluateInOrder,
    settings: SearchSettings,
    progress: Progress = silent,
    *,
    guide: Guide | None = None,
    known: Sequence[Sample] = (),
    latency: LatencyModel | None = None,
) -> SearchResult:
    """Scan, search every target, store every sample; the result is a function of settings, seed and metrics alone.

    Args:
        repository: holds the model and the calibration set; takes the samples.
        evaluate: the engine that measures on the calibration set.
        progress: told about every evaluation.
        guide: leads the search, e.g. a trained predictor: what it proposes is scored first, and its prior is one of the
            tree, if the settings ask for simulations.
        known: samples that the search's surrogate learns from before it begins; the result depends on them.
        latency: prices targets of latency; needed where the settings have some.

    Raises:
        NotFoundError: the model or the calibration set is not registered.
        InfeasibleTargetError: a target that no choice can meet; before anything is evaluated.
        InputError: a metric that is not finite.
    """
    model = repository.get_model(model_id)
    repository.get_calibration(calibration_id)
    space = settings.space(model.anatomy)
    targets = settings.resolve_targets(model.anatomy, latency)

    def memoised(source: str) -> Score:
        memo = MemoisedEvaluator(repository, model_id, model.ranking_sha256, calibration_id, evaluate, source)
        return lambda choices: memo([space.architecture(choice) for choice in choices])

    whole = settings.axes is SpaceName.FFN or settings.axes.has_bits  # what is estimated knows one kind of change
    most = None if whole else MAX_SCAN_EVALUATIONS
    scan_evaluations = len(scan_choices(space, most)) if settings.method is SearchMethod.MCTS else 0
    total = scan_evaluations + len(targets) * settings.num_evaluations
    shared: SharedKnowledge | None = None
    alone: BitsAlone | None = None
    if settings.method is SearchMethod.MCTS:
        sensitivity = scan_sensitivity(
            space, memoised(SENSITIVITY_SOURCE), lambda done: progress(done, total, "sensitivity scan", None), most=most
        )
        samples = known_samples(settings.price(model.anatomy), space, known)
        shared = SharedKnowledge(sensitivity, samples, retentions(space))
        alone = BitsAlone(space, sensitivity) if space.has_bits else None
    score = memoised(str(settings.method))
    results = []
    for index, target in enumerate(targets):
        before = scan_evaluations + index * settings.num_evaluations

        def on_evaluation(done: int, best: Metrics, before: int = before, label: str = target.label) -> None:
            progress(before + done, total, label, best)

        limits = settings.limits(model.anatomy, target, latency)
        if shared is None:
            results.append(_search_blindly(limits, target, score, settings, index, on_evaluation))
            continue
        first: dict[Choice, Metrics] = {}
        if alone is not None:
            first = alone.search(limits, target, score, settings, index=index, on_evaluation=on_evaluation)
        search = TargetSearch(
            limits, target, score, settings, shared, index=index, guide=guide, known=first, on_evaluation=on_evaluation
        )
        results.append(search.run())
    progress(total, total, targets[-1].label, results[-1].metrics)
    return SearchResult(targets=tuple(results), scan_evaluations=scan_evaluations)


def _search_blindly(
    limits: Limits,
    target: SearchTarget,
    score: Score,
    settings: SearchSettings,
    index: int,
    on_evaluation: OnEvaluation,
) -> TargetResult:
    """One target by a method that learns nothing from one target for the next."""
    rng = np.random.default_rng([settings.seed, index])
    best: list[Metrics] = []

    def on_scored(_choice: Choice, metrics: Metrics) -> None:
        best.append(min([*best[-1:], metrics], key=lambda m: m.score))
        on_evaluation(len(best), best[-1])

    search = evolve if settings.method is SearchMethod.EVOLUTION else search_randomly
    scored = search(limits, score, settings.num_evaluations, rng, on_scored=on_scored)
    return TargetResult.of(target, limits.space, scored)
