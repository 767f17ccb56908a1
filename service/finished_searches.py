"""What finished searches found for a model, target by target."""

import logging
from dataclasses import dataclass

from pruning.anatomy import ModelAnatomy
from pruning.errors import InputError
from pruning.metrics import Metrics
from service.lru_cache import LruCache
from service.methods.names import Method
from storage.contract import Repository
from storage.records import ModelRecord, Sample, SearchRecord, SearchStatus

_logger = logging.getLogger("service.searches")

_MAX_CACHED = 64


@dataclass(frozen=True, slots=True)
class FoundConfiguration:
    """The best configuration that one search found for one of its targets.

    Attributes:
        search_id: the search.
        method: how it searched.
        label: the target, in words.
        widths: FFN widths [L].
        parameters: FFN parameters that they keep.
        metrics: as measured on the calibration set, without any rounding to other widths.
        evaluations: configurations that were scored for this target.
        seed: of the search; None if its settings do not say.
        calibration_id: the set of `metrics`; None if the sample is not stored.
    """

    search_id: str
    method: Method
    label: str
    widths: tuple[int, ...]
    parameters: int
    metrics: Metrics
    evaluations: int
    seed: int | None
    calibration_id: str | None


class SearchFinder:
    """What a model's finished searches found. Those never change, so an answer holds until there are more of them."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._found: LruCache[tuple[str, int], list[FoundConfiguration]] = LruCache(_MAX_CACHED)

    def find(self, model: ModelRecord, method: Method) -> list[FoundConfiguration]:
        """What `method` found, in the order in which the searches were stored."""
        count = self._repository.count_searches(model.id, SearchStatus.DONE)
        found = self._found.get((model.id, count), lambda: self._read(model))
        return [configuration for configuration in found if configuration.method is method]

    def _read(self, model: ModelRecord) -> list[FoundConfiguration]:
        searches = self._repository.list_searches(model_id=model.id, status=SearchStatus.DONE)
        if not searches:
            return []
        samples = self._repository.list_samples(model.id, ranking_sha256=model.ranking_sha256)
        found: list[FoundConfiguration] = []
        for search in searches:
            try:
                found += read_search(search, model.anatomy, samples)
            except InputError as error:
                _logger.warning("search %s of model %s cannot be used: %s", search.id, model.id, error)
        return found


def read_search(search: SearchRecord, anatomy: ModelAnatomy, samples: list[Sample]) -> list[FoundConfiguration]:
    """What a finished search found.

    Its settings document holds the search's own settings as "search", with the method as "method" among them ("mcts" if
    there is none); its result document is a `SearchResult`, or holds one as "search" beside what else was done.
    Searches on several calibration sets are told apart by `samples`: everything that a search measures is one.

    Raises InputError if the documents are of another form, or of another model.
    """
    from mcts.result import SearchResult

    # Metrics are compared as they were stored: exactly.
    sets = {(sample.widths, sample.metrics): sample.calibration_id for sample in samples}
    document = search.result or {}
    try:
        settings = search.settings["search"]
        method, seed = Method(settings.get("method", Method.MCTS)), settings.get("seed")
        result = SearchResult.from_dict(document.get("search", document))
        return [
            FoundConfiguration(
                search_id=search.id,
                method=method,
                label=target.label,
                widths=target.widths,
                parameters=_parameters(anatomy, target.widths),
                metrics=target.metrics,
                evaluations=target.evaluations,
                seed=seed,
                calibration_id=sets.get((target.widths, target.metrics)),
            )
            for target in result.targets
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError("a finished search holds its settings and its result", values=repr(error)) from error


def _parameters(anatomy: ModelAnatomy, widths: tuple[int, ...]) -> int:
    if any(not 1 <= width <= layer.ffn_width for width, layer in zip(widths, anatomy.layers, strict=True)):
        raise InputError("a search finds widths of its model", values=str(widths))
    return sum(w * x.ffn_parameters_per_channel for w, x in zip(widths, anatomy.layers, strict=True))
