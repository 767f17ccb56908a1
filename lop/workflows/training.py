"""Training a model's predictor on its stored samples, and registering it."""

import logging
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.errors import InputError
from pruning.measuring.statistics import ModelStatistics, StatisticsKind
from pruning.planning.axis_spaces import SpaceName
from pruning.planning.plan_parts import content_id
from service.finished_searches import searched_axes
from storage.contract import Findings, Registry, Repository
from storage.records import PredictorRecord, Sample, SearchStatus

_logger = logging.getLogger("lop.training")

if TYPE_CHECKING:
    from mcts.result import TargetResult
    from policy_model.progress import ProgressCallback
    from policy_model.training import TrainingSettings
    from values.cross_validation import CrossValidation


def training_samples(repository: Repository, model_id: str, calibration_id: str | None = None) -> list[Sample]:
    """The samples to learn from: of one calibration set (by default that with most FFN widths), under today's ranking.

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
    of_widths = [s for s in samples if model.anatomy.ffn_widths_alone(s.architecture) is not None]
    largest = Counter(sample.calibration_id for sample in of_widths or samples).most_common(1)[0][0]
    return [sample for sample in samples if sample.calibration_id == largest]


def cross_validated_targets(repository: Findings, model_id: str, calibration_id: str) -> dict[int, "CrossValidation"]:
    """What finished searches of FFN widths know of unseen conversations, by the targets' budgets: those of a model, on
    that calibration set.

    Of targets that were searched more than once, what the search of most evaluations says, or the latest of those: a
    predictor knows the samples of them all, and chooses from as many at least.
    """
    from mcts.result import SearchResult

    found: dict[int, TargetResult] = {}
    for search in repository.list_searches(model_id=model_id, status=SearchStatus.DONE):
        try:
            document: Any = search.result
            if document is None or document.get("calibration_id") != calibration_id:
                continue
            if searched_axes(search) is not SpaceName.FFN:
                continue
            targets = SearchResult.from_dict(document["search"]).targets
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            _logger.warning("search %s says nothing of unseen conversations: %r", search.id, error)
            continue
        for target in targets:
            known = found.get(target.budget)
            if target.cross_validation and (known is None or target.evaluations >= known.evaluations):
                found[target.budget] = target
    return {budget: x.cross_validation for budget, x in found.items() if x.cross_validation is not None}


def train_model(
    repository: Repository,
    model_id: str,
    settings: "TrainingSettings",
    *,
    calibration_id: str | None = None,
    cross_validated: Mapping[int, "CrossValidation"] | None = None,
    progress: "ProgressCallback | None" = None,
    resume_folder: Path | None = None,
) -> PredictorRecord:
    """Train a predictor and register it; the server uses the latest one.

    `cross_validated` are of a search that is not stored yet, by budget: later than all that are. With a
    `resume_folder`, a training that was interrupted goes on from what it left there.

    Raises:
        NotFoundError: no such model.
        InputError: no samples, and as `policy_model.training.train_predictor`.
    """
    from policy_model.training import train_predictor

    samples = training_samples(repository, model_id, calibration_id)
    model = repository.get_model(model_id)
    known = cross_validated_targets(repository, model_id, samples[0].calibration_id)
    predictor = train_predictor(
        model.anatomy,
        samples,
        settings,
        statistics=_activations(repository, model_id),
        cross_validated=tuple((known | dict(cross_validated or {})).values()),
        progress=progress,
        checkpoint_folder=resume_folder,
    )
    weights, config = predictor.to_bytes()
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
