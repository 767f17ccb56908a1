"""Probes after a search, through the database: every one is stored as soon as it is measured."""

import logging
from collections.abc import Callable

from engines.memo import EvaluateInOrder, MemoisedEvaluator
from lop.workflows.training import stored_activations, training_samples
from mcts.settings import SearchMethod, SearchSettings
from policy_model.probing import SOURCE, NothingLearntError, Probe, probe
from policy_model.training import TrainingSettings
from pruning.anatomy.architecture import Architecture
from pruning.measuring.metrics import Metrics
from pruning.planning.axis_spaces import SpaceName
from pruning.planning.plan_parts import content_id
from storage.contract import Repository
from values.decisions import units_in

DEFAULT_PROBES = 32
"""In the space `all` (docs/search.md, "Probes")."""

_logger = logging.getLogger("lop.probing")


def num_probes(settings: SearchSettings, asked: int | None) -> int:
    """As `asked`, or by default: of this product's own search where FFNs and attention change together, whose
    predictors are worst between the targets, and none of others.

    Raises InputError if some are asked for of a space that no predictor learns.
    """
    if asked is None:
        usual = settings.axes is SpaceName.ALL and settings.method is SearchMethod.MCTS
        return DEFAULT_PROBES if usual else 0
    if asked:
        _training(settings)  # which refuses such spaces
    return asked


def probe_model(
    repository: Repository,
    model_id: str,
    calibration_id: str,
    evaluate: EvaluateInOrder,
    settings: SearchSettings,
    count: int,
    on_probe: Callable[[int, Probe | None], None],
) -> list[Probe]:
    """What `count` probes after a search of `settings` found.

    They learn from every sample of the space but their own: killed and run again, it asks for the same ones, which are
    stored, unless another search has stored samples in the meantime. Where what is stored cannot be learnt from, a
    warning says so, and none are made: the search itself is not lost.
    """
    model = repository.get_model(model_id)
    training = _training(settings)
    space = training.space(model.anatomy)
    own = f"{SOURCE}:{content_id(settings.to_dict())[:8]}"
    score = MemoisedEvaluator(repository, model_id, model.ranking_sha256, calibration_id, evaluate, own)

    def measured(architecture: Architecture) -> Metrics:
        (metrics,) = score([architecture])
        return metrics

    samples = training_samples(repository, model_id, calibration_id, space)
    try:
        return probe(
            model.anatomy,
            [s for s in samples if s.source != own and units_in(space, s.architecture) is not None],
            training,
            measured,
            count,
            statistics=stored_activations(repository, model_id),
            on_probe=on_probe,
        )
    except NothingLearntError as error:
        _logger.warning("no probes: %s", error)
        return []


def _training(settings: SearchSettings) -> TrainingSettings:
    return TrainingSettings(
        num_levels=settings.num_levels, round_to=settings.round_to, axes=settings.axes, seed=settings.seed
    )
