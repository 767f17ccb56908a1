"""Finds a complete one-layer scan among the stored samples of a model: what the additive allocator works from."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Sublayer
from pruning.arrays import FloatArray
from pruning.errors import InputError
from pruning.planning.ffn_spaces import ffn_space
from pruning.planning.plan_parts import content_id
from pruning.planning.space import Space
from service.finished_searches import searched_space
from service.lru_cache import LruCache
from storage.contract import Findings
from storage.records import ModelRecord, Sample

_MAX_CACHED = 64

_logger = logging.getLogger("service.searches")


@dataclass(frozen=True)
class SensitivityScan:
    """KL to dense of every option of every layer while all other layers are dense.

    Attributes:
        id: a hash of the calibration set and the widths; samples are immutable, so it stands for the whole scan.
        calibration_id: the set that it was measured on.
        space: the widths that were measured, equally many of each layer, one decision a layer. It serves requests of
            any `round_to`: its widths are repaired to theirs.
        table: [L, K] in nats.
    """

    id: str
    calibration_id: str
    space: Space
    table: FloatArray

    @property
    def num_levels(self) -> int:
        """K."""
        return int(self.table.shape[1])

    @property
    def num_samples(self) -> int:
        """Evaluations that the scan took, the dense model's own not counted."""
        return int(self.table.shape[0]) * (self.num_levels - 1)


def find_scan(anatomy: ModelAnatomy, samples: Iterable[Sample], spaces: Sequence[Space] = ()) -> SensitivityScan | None:
    """The complete scan with the most levels, of equals that of the calibration set that came last; None if none.

    A scan is of one of the `spaces` that were searched. Where none of those is complete, it is of the widths that were
    measured: the same ones in all layers of one width, equally many in all layers.
    """
    dense = anatomy.dense_units(Sublayer.FFN)
    measured: dict[str, list[dict[int, float]]] = {}
    for sample in samples:
        rows = measured.setdefault(sample.calibration_id, [{w: 0.0} for w in dense])
        widths = anatomy.ffn_widths_alone(sample.architecture)
        changed = [] if widths is None else [i for i, (a, b) in enumerate(zip(widths, dense, strict=True)) if a != b]
        if widths is not None and len(changed) == 1:
            rows[changed[0]][widths[changed[0]]] = sample.metrics.kl
    candidates = [[row.tolist() for row in space.units] for space in spaces if _is_table(space, anatomy)]
    best: SensitivityScan | None = None
    for calibration_id, rows in measured.items():
        complete = [c for c in candidates if all(w in row for row, ws in zip(rows, c, strict=True) for w in ws)]
        widths_found = max(complete, key=lambda c: len(c[0]), default=None) or _measured_widths(rows, dense)
        if widths_found is not None and (best is None or len(widths_found[0]) >= best.num_levels):
            table = np.array([[row[w] for w in ws] for row, ws in zip(rows, widths_found, strict=True)])
            scan_id = content_id({"calibration": calibration_id, "widths": widths_found})
            space = ffn_space(widths_found)
            best = SensitivityScan(scan_id, calibration_id, space, table)
    return best


def _is_table(space: Space, anatomy: ModelAnatomy) -> bool:
    """Whether it decides the FFN width of every layer, each among equally many, the dense one the last."""
    return (
        ffn_space(space.units).document() == space.document()
        and space.of_ladders
        and len(set(space.counts.tolist())) == 1
        and space.units_of(space.top) == anatomy.dense_units(Sublayer.FFN)
    )


def _measured_widths(rows: Sequence[dict[int, float]], dense: Sequence[int]) -> list[list[int]] | None:
    """[L][K] the widths of `rows` [L], width -> KL; None if some are missing in a layer."""
    widths = [sorted(row) for row in rows]
    of_equals: dict[int, list[int]] = {}
    complete = all(of_equals.setdefault(w, row) == row for w, row in zip(dense, widths, strict=True))
    return widths if complete and {len(row) for row in widths} == {max(len(widths[0]), 2)} else None


class ScanFinder:
    """`find_scan` over a repository. What is stored never changes, so an answer holds until a model has more of it."""

    def __init__(self, repository: Findings) -> None:
        self._repository = repository
        self._found: LruCache[tuple[str, int, tuple[str, ...]], SensitivityScan | None] = LruCache(_MAX_CACHED)

    def find(self, model: ModelRecord) -> SensitivityScan | None:
        """The scan to allocate by; None if no complete one is stored for the model's ranking."""
        count = self._repository.count_samples(model.id)
        searches = self._repository.list_search_ids(model.id)
        return self._found.get((model.id, count, searches), lambda: self._look(model))

    def _look(self, model: ModelRecord) -> SensitivityScan | None:
        spaces = []
        for search in self._repository.list_searches(model.id):
            try:
                spaces.append(searched_space(search, model.anatomy))
            except InputError as error:
                _logger.warning("the space of search %s of model %s is left out: %s", search.id, model.id, error)
        samples = self._repository.list_samples(model.id, ranking_sha256=model.ranking_sha256)
        return find_scan(model.anatomy, samples, spaces)
