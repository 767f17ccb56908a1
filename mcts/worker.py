"""One search request from start to end: the one-layer scan, then every target in turn.

Everything measured is in the repository the moment it is known, so a search that was killed is simply run again: it
reads what it had, decides the same, and goes on where it stopped.
"""

from mcts.evaluator import Evaluate, MemoisedEvaluator
from mcts.prior import Prior
from mcts.progress import Progress, silent
from mcts.result import SearchResult
from mcts.search import SharedKnowledge, TargetSearch
from mcts.sensitivity import SENSITIVITY_SOURCE, scan_configurations, scan_sensitivity
from mcts.settings import SearchSettings
from pruning.levels import LevelGrid
from storage.contract import Repository

SEARCH_SOURCE = "mcts"
"""`source` of the samples that the tree search stores."""


def run_search(
    repository: Repository,
    model_id: str,
    calibration_id: str,
    evaluate: Evaluate,
    settings: SearchSettings,
    progress: Progress = silent,
    *,
    prior: Prior | None = None,
) -> SearchResult:
    """Scan, search every target, store every sample; the result is a function of settings, seed and metrics alone.

    Args:
        repository: holds the model and the calibration set; takes the samples.
        evaluate: measures FFN widths [n][L] on the calibration set.
        progress: told about every evaluation.
        prior: mixed with the search's own prior, e.g. a trained predictor's.

    Raises:
        NotFoundError: the model or the calibration set is not registered.
        InfeasibleTargetError: a target that no configuration can meet; before anything is evaluated.
        InputError: a metric that is not finite.
    """
    model = repository.get_model(model_id)
    repository.get_calibration(calibration_id)
    grid = LevelGrid.build(model.anatomy, num_levels=settings.num_levels, round_to=settings.round_to)
    targets = settings.resolve_targets(model.anatomy, grid)

    def memoised(source: str) -> MemoisedEvaluator:
        return MemoisedEvaluator(
            repository,
            model_id,
            model.ranking_sha256,
            calibration_id,
            evaluate,
            source,
            batch_size=settings.parallel_leaves,
        )

    scan_evaluations = len(scan_configurations(grid))
    total = scan_evaluations + len(targets) * settings.num_evaluations
    sensitivity = scan_sensitivity(
        grid, memoised(SENSITIVITY_SOURCE), lambda done: progress(done, total, "sensitivity scan", None)
    )
    shared = SharedKnowledge(sensitivity, [])
    score = memoised(SEARCH_SOURCE)
    results = []
    for index, target in enumerate(targets):
        before = scan_evaluations + index * settings.num_evaluations

        def on_evaluation(done: int, best_kl: float, before: int = before, label: str = target.label) -> None:
            progress(before + done, total, label, best_kl)

        search = TargetSearch(
            grid, target, score, settings, shared, index=index, prior=prior, on_evaluation=on_evaluation
        )
        results.append(search.run())
    progress(total, total, targets[-1].label, results[-1].metrics.kl)
    return SearchResult(targets=tuple(results), scan_evaluations=scan_evaluations)
