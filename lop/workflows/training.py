"""Training a model's predictor on its stored samples, and registering it."""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.errors import InputError
from pruning.measuring.statistics import ModelStatistics, StatisticsKind
from pruning.planning.axis_spaces import SpaceName, name_of
from pruning.planning.ffn_spaces import ffn_widths
from pruning.planning.plan_parts import content_id
from pruning.planning.space import Space
from pruning.planning.target import counted
from service.finished_searches import searched_axes
from storage.contract import Findings, Registry, Repository
from storage.records import PredictorRecord, Sample
from values.decisions import units_in
from values.typical_kl import scored_alike

_logger = logging.getLogger("lop.training")

if TYPE_CHECKING:
    from policy_model.progress import ProgressCallback
    from policy_model.training import TrainingSettings
    from values.cross_validation import CrossValidation


def training_samples(
    repository: Repository, model_id: str, calibration_id: str | None = None, space: Space | None = None
) -> list[Sample]:
    """The samples to learn from, under today's ranking: of one calibration set, by default that with most samples of
    `space` (by default of FFN widths).

    Raises:
        NotFoundError: the model is not registered.
        InputError: there are no samples.
    """
    model = repository.get_model(model_id)
    samples = repository.list_samples(model_id, ranking_sha256=model.ranking_sha256, calibration_id=calibration_id)
    if not samples:
        raise InputError(
            "a predictor is trained on the samples of a search",
            values=f"model {model_id!r} has none",
            remedy="Run `lop search` first",
        )
    space = space or ffn_widths(model.anatomy, round_to=1)
    of_space = [sample for sample in samples if units_in(space, sample.architecture) is not None]
    largest = Counter(sample.calibration_id for sample in of_space or samples).most_common(1)[0][0]
    return scored_alike([sample for sample in samples if sample.calibration_id == largest])


def searched_budgets(
    repository: Findings, model_id: str, calibration_id: str, axes: SpaceName = SpaceName.FFN
) -> set[int]:
    """Those of the targets of finished searches of `axes`, of a model on that calibration set."""
    from mcts.result import SearchResult

    found: set[int] = set()
    for search in repository.list_searches(model_id):
        try:
            document = search.result
            if document.get("calibration_id") != calibration_id:
                continue
            if searched_axes(search) is not axes:
                continue
            targets = SearchResult.from_dict(document["search"]).targets
            found |= {target.budget for target in targets if target.latency is None}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            _logger.warning("the targets of search %s are not known: %r", search.id, error)
    return found


def cross_validated(
    anatomy: ModelAnatomy, samples: Sequence[Sample], budgets: Iterable[int], space: Space | None = None
) -> dict[int, "CrossValidation"]:
    """What all `samples` of a predictor of `space` (by default of FFN widths) know of unseen conversations at each
    budget: in FFN parameters, or in those of the decoder's layers where more than FFN widths may change.

    Of all that fits a budget, whichever search or round scored it: a predictor knows them all, and chooses from as many
    at least. Samples from before there were folds take no part; budgets are left out at which the best is one of those,
    and those that nothing fits.
    """
    from values.cross_validation import CrossValidation

    dense = next((sample.metrics for sample in samples if not sample.architecture.items), None)
    space = space or ffn_widths(anatomy, round_to=1)
    price = counted(anatomy, name_of(space))
    of_space = [sample for sample in samples if units_in(space, sample.architecture) is not None]
    cost = [price.cost(sample.architecture) for sample in of_space]
    found: dict[int, CrossValidation] = {}
    if dense is None:
        return found
    for budget in sorted(budgets):
        scored = [sample.metrics for sample, needed in zip(of_space, cost, strict=True) if needed <= budget]
        if not scored or min(scored, key=lambda metrics: metrics.score).folds is None:
            continue
        judged = CrossValidation.of([metrics for metrics in scored if metrics.folds is not None], dense)
        if judged is not None:
            found[budget] = judged
    return found


def train_model(
    repository: Repository,
    model_id: str,
    settings: "TrainingSettings",
    *,
    calibration_id: str | None = None,
    budgets: Iterable[int] = (),
    progress: "ProgressCallback | None" = None,
    resume_folder: Path | None = None,
) -> PredictorRecord:
    """Train a predictor and register it; the server uses the latest one.

    What to expect of unseen conversations it learns at the targets of the searches that are stored, and at `budgets` of
    those that are not yet. With a `resume_folder`, a training that was interrupted goes on from what it left there.

    Raises:
        NotFoundError: no such model.
        InputError: no samples, and as `policy_model.training.train_predictor`.
    """
    from policy_model.progress import TrainingProgress
    from policy_model.training import train_predictor

    model = repository.get_model(model_id)
    space = settings.space(model.anatomy)
    samples = training_samples(repository, model_id, calibration_id, space)
    searched = searched_budgets(repository, model_id, samples[0].calibration_id, settings.axes) | {*budgets}
    predictor = train_predictor(
        model.anatomy,
        samples,
        settings,
        statistics=_activations(repository, model_id),
        cross_validated=tuple(cross_validated(model.anatomy, samples, searched, space).values()),
        progress=progress,
        checkpoint_folder=resume_folder,
    )
    weights, config = predictor.to_bytes()
    if progress is not None and config["policy"] is None:  # then nothing was told yet: who was cancelled raises now
        progress(TrainingProgress("values", 1, 1, math.nan, predictor.metrics["value_error_log_kl"]))
    sha256 = repository.put_artifact(weights, "application/octet-stream")
    return repository.add_predictor(
        PredictorRecord(
            id=content_id({"weights": sha256, "config": config}),
            model_id=model_id,
            weights_sha256=sha256,
            config=config,
            created_at=datetime.now(UTC),
            space=predictor.encoding.space.document(),
        )
    )


def _activations(repository: Registry, model_id: str) -> ModelStatistics | None:
    """What `lop model add` measured, which tells layers apart; None for models of an earlier version."""
    record = repository.latest_statistics(model_id, StatisticsKind.ACTIVATIONS)
    if record is None:
        return None
    return ModelStatistics.from_bytes(repository.get_artifact(record.sha256).content)
