"""What finished searches found for a model, target by target."""

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pruning.allocators.methods import Method
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture
from pruning.errors import InputError
from pruning.measuring.metrics import FoldMetrics, Metrics
from pruning.planning.axis_spaces import SpaceName, name_of
from pruning.planning.ffn_spaces import DEFAULT_NUM_LEVELS, DEFAULT_ROUND_TO, ffn_levels
from pruning.planning.plan import RecoveryStep
from pruning.planning.prices import Price
from pruning.planning.space import Space
from pruning.planning.target import counted
from pruning.planning.workload import Workload
from service.dense_metrics import dense_metrics
from service.lru_cache import LruCache
from storage.contract import Findings
from storage.records import ModelRecord, SearchRecord
from values.unseen import UnseenPoint

if TYPE_CHECKING:
    from mcts.result import TargetResult

_logger = logging.getLogger("service.searches")

_MAX_CACHED = 64

AFTER_RECOVERY: Final = "after_recovery"
"""What settings and result of a search are under whose configurations were recovered and then chosen: earlier versions,
which do not know it, leave such a search out."""


@dataclass(frozen=True, slots=True)
class Validation:
    """What a configuration is worth on conversations that its search never saw.

    Attributes:
        data: their file's name.
        calibration_id: of the set.
        dense: of the dense model there; None if it is not known.
    """

    data: str
    calibration_id: str
    metrics: Metrics
    dense: Metrics | None = None


@dataclass(frozen=True, slots=True)
class SearchedLatency:
    """Nanoseconds that a request may take on a device."""

    device: str
    workload: Workload
    most_ns: int


@dataclass(frozen=True, slots=True)
class FoundConfiguration:
    """The best configuration that one search found for one of its targets.

    Attributes:
        search_id: the search.
        method: how it searched.
        label: the target, in words.
        architecture: what it keeps.
        budget: parameters that the target allowed, as `pruning.planning.target.counted` counts them: all of them, if it
            was a latency.
        parameters: those that it keeps.
        level_step: those of the largest step between two options of the search's space.
        metrics: as measured on the calibration set, without any rounding to other options.
        evaluations: configurations that were scored for this target.
        seed: of the search; None if its settings do not say.
        calibration_id: the set of `metrics`; None if the search does not say.
        validation: None if it was not validated.
        unseen: what to expect of unseen conversations; None if it was not cross-validated.
        space: what the search was allowed to change.
        dense: metrics of the dense model on the calibration set; None if they are not known.
        recovery: the training after which `metrics` and `validation` were measured; empty: after none.
        latency: what the target allowed, if it was a latency.
        held_out: what the search would have chosen without each fold, on that fold; empty without cross-validation.
        changes_bits_alone: it was found where bits may change, and keeps all units.
    """

    search_id: str
    method: Method
    label: str
    architecture: Architecture
    budget: int
    parameters: int
    level_step: int
    metrics: Metrics
    evaluations: int
    seed: int | None
    calibration_id: str | None
    validation: Validation | None = None
    unseen: UnseenPoint | None = None
    dense: Metrics | None = None
    space: SpaceName = SpaceName.FFN
    recovery: tuple[RecoveryStep, ...] = ()
    latency: SearchedLatency | None = None
    held_out: tuple[FoldMetrics, ...] = ()
    changes_bits_alone: bool = False

    @property
    def left_over(self) -> int:
        """What its target allowed more than it keeps, of what nothing can be made: where bits may change. Elsewhere
        that is less than a step."""
        return self.budget - self.parameters if self.space.has_bits else 0


class SearchFinder:
    """What a model's finished searches found. Those never change, so an answer holds while there are no others."""

    def __init__(self, repository: Findings) -> None:
        self._repository = repository
        self._found: LruCache[tuple[str, tuple[str, ...]], list[FoundConfiguration]] = LruCache(_MAX_CACHED)

    def find(
        self,
        model: ModelRecord,
        method: Method,
        *spaces: SpaceName,
        after_recovery: bool = False,
    ) -> list[FoundConfiguration]:
        """What `method` found in spaces of these names, in the order in which the searches were stored: for use as it
        is cut, or for after a recovery."""
        ids = self._repository.list_search_ids(model.id)
        found = self._found.get((model.id, ids), lambda: self._read(model) if ids else [])
        return [x for x in found if x.method is method and x.space in spaces and bool(x.recovery) is after_recovery]

    def _read(self, model: ModelRecord) -> list[FoundConfiguration]:
        found: list[FoundConfiguration] = []
        for search in self._repository.list_searches(model.id):
            try:
                found += read_search(search, model.anatomy)
            except InputError as error:
                _logger.warning("search %s of model %s cannot be used: %s", search.id, model.id, error)
        sets = sorted({x.calibration_id for x in found if x.calibration_id and not x.recovery})
        dense = {calibration_id: dense_metrics(self._repository, model, calibration_id) for calibration_id in sets}
        return [x if x.recovery else replace(x, dense=dense.get(x.calibration_id or "")) for x in found]


def read_search(search: SearchRecord, anatomy: ModelAnatomy) -> list[FoundConfiguration]:
    """What a finished search found.

    Its settings document holds the search's own settings as "search"; what those leave out has its default ("mcts" for
    "method"). Its result document holds a `SearchResult` as "search", and beside it "calibration_id" and, if it was
    validated, "validation" with the name of the "data", the "id" of the set, the "metrics" target by target and, since
    exact match is told only where the dense model has any, "dense" with the metrics of that.

    Both documents may be under `AFTER_RECOVERY` (`lop.workflows.after_recovery`): then metrics are of recovered models,
    and the result also holds the "steps" of each target's recovery, the "space", and the "dense" metrics.

    Raises InputError if the documents are of another form, or of another model, or the space is none of those that the
    settings name.
    """
    from mcts.result import SearchResult

    if AFTER_RECOVERY in search.settings:
        return _read_after_recovery(search, anatomy)
    document = search.result
    name, space = searched_axes(search), searched_space(search, anatomy)
    if name is None:
        raise InputError("a search is of a space that this version knows", values=repr(search.settings["search"]))
    price = counted(anatomy, name)
    level_step = _largest_step(space, name, price)
    try:
        settings = search.settings["search"]
        method, seed = Method(settings.get("method", Method.MCTS)), settings.get("seed")
        result = SearchResult.from_dict(document["search"])
        validations = _validations(document.get("validation"), len(result.targets))
        found = [_architecture(target, space, name, anatomy) for target in result.targets]
        return [
            FoundConfiguration(
                search_id=search.id,
                method=method,
                label=target.label,
                architecture=architecture,
                budget=target.budget,
                parameters=price.cost(architecture),
                level_step=level_step,
                metrics=target.metrics,
                evaluations=target.evaluations,
                seed=seed,
                calibration_id=document.get("calibration_id"),
                validation=validation,
                unseen=None if target.cross_validation is None else UnseenPoint.of(target.cross_validation),
                space=name,
                latency=_latency(target, settings),
                held_out=() if target.cross_validation is None else target.cross_validation.folds,
                changes_bits_alone=name.has_bits
                and all(option.units == price.dense[site] for site, option in architecture.items),
            )
            for target, architecture, validation in zip(result.targets, found, validations, strict=True)
        ]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("a finished search holds its settings and its result", values=repr(error)) from error


def _read_after_recovery(search: SearchRecord, anatomy: ModelAnatomy) -> list[FoundConfiguration]:
    try:
        document = search.result[AFTER_RECOVERY]
        steps = [(RecoveryStep.model_validate(step),) for step in document["steps"]]
        dense = Metrics(**document["dense"])
        result = {"search": document["search"], "calibration_id": document["calibration_id"]}
        if (validation := search.result.get("validation")) is not None:
            result["validation"] = validation
        settings = {"search": search.settings[AFTER_RECOVERY]["search"]}
        found = read_search(replace(search, settings=settings, result=result, space=document["space"]), anatomy)
        return [replace(x, recovery=step, dense=dense) for x, step in zip(found, steps, strict=True)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("a search after recovery holds its steps and its result", values=repr(error)) from error


def searched_axes(search: SearchRecord) -> SpaceName | None:
    """What the search was allowed to change; None if its settings say something that this version does not know, or
    nothing was searched, but found configurations were recovered."""
    if AFTER_RECOVERY in search.settings:
        return None
    settings = search.settings.get("search")
    said = settings.get("axes", SpaceName.FFN) if isinstance(settings, dict) else SpaceName.FFN
    return SpaceName(said) if said in tuple(SpaceName) else None


def searched_space(search: SearchRecord, anatomy: ModelAnatomy) -> Space:
    """What the search chose from: as it is stored, or in searches of before as their settings say.

    Raises InputError for a space that this version cannot read, or settings that say none.
    """
    if search.space is not None:
        return Space.from_document(search.space)
    settings = search.settings.get("search")
    if not isinstance(settings, dict):
        raise InputError("the settings of a search say its levels", values=repr(search.settings))
    levels, round_to = settings.get("num_levels", DEFAULT_NUM_LEVELS), settings.get("round_to", DEFAULT_ROUND_TO)
    if not isinstance(levels, int) or not isinstance(round_to, int):
        raise InputError("levels and their rounding are whole numbers", values=f"{levels!r}, {round_to!r}")
    return ffn_levels(anatomy, num_levels=levels, round_to=round_to)


def _largest_step(space: Space, name: SpaceName, price: Price) -> int:
    """In what `price` counts; raises InputError for a space that is not of that name, or of another model."""
    sites = [site for decision in space.decisions for site in decision.sites]
    of_model = all(price.dense.get(site) == space.dense[site] for site in sites)
    if not of_model or name_of(space) is not name:
        raise InputError(
            f"a search of '{name}' has a space of that, of the sites of its model",
            values=", ".join(f"{site.layer}.{site.sublayer}" for site in sites[:3]),
        )
    return max(int(np.diff(np.sort(row)).max(initial=0)) for row in space.tables(price.of))


def _architecture(target: "TargetResult", space: Space, name: SpaceName, anatomy: ModelAnatomy) -> Architecture:
    """What was found: in FFN widths as they are said, which may be none of the space in searches of before."""
    if name is not SpaceName.FFN:
        if len(target.choice) != space.num_decisions or space.units_of(target.choice) != target.widths:
            raise ValueError("a choice has an option of each decision of its space")
        return space.architecture(target.choice)
    widths = target.widths
    if any(not 1 <= width <= layer.ffn_width for width, layer in zip(widths, anatomy.layers, strict=True)):
        raise InputError("a search finds widths of its model", values=str(widths))
    return anatomy.architecture(widths)


def _latency(target: "TargetResult", settings: dict[str, Any]) -> SearchedLatency | None:
    if target.latency is None:
        return None
    asked = settings["latency"]
    return SearchedLatency(asked["device"], Workload.model_validate(asked["workload"]), target.latency.most_ns)


def _validations(document: dict[str, Any] | None, num_targets: int) -> list[Validation | None]:
    """What the document says of each target."""
    if document is None:
        return [None] * num_targets
    data, calibration_id = str(document["data"]), str(document["id"])
    dense = document.get("dense")
    of_dense = None if dense is None else Metrics(**dense)
    return [Validation(data, calibration_id, Metrics(**metrics), of_dense) for metrics in document["metrics"]]
