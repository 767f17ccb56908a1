"""Finds a complete one-layer scan among the stored samples of a model: what the additive allocator works from."""

from dataclasses import dataclass

import numpy as np

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.arrays import FloatArray
from pruning.errors import InputError
from pruning.planning.ffn_spaces import DEFAULT_ROUND_TO, ffn_levels
from pruning.planning.plan_parts import content_id
from pruning.planning.space import Space
from service.lru_cache import LruCache
from storage.contract import Repository
from storage.records import ModelRecord, Sample

# Grids that a scan may have been made on. A scan serves requests of any `round_to`: its widths are repaired to theirs.
_ROUNDINGS = (DEFAULT_ROUND_TO, 1, 2, 4, 16, 32, 64, 128, 256)
_MAX_LEVELS = 32
_MAX_CACHED = 64


@dataclass(frozen=True)
class SensitivityScan:
    """KL to dense of every level of every layer while all other layers are dense.

    Attributes:
        id: a hash of the calibration set and the widths; samples are immutable, so it stands for the whole scan.
        calibration_id: the set that it was measured on.
        space: the levels that were measured.
        table: [L, K] in nats.
    """

    id: str
    calibration_id: str
    space: Space
    table: FloatArray

    @property
    def num_samples(self) -> int:
        """Evaluations that the scan took, the dense model's own not counted."""
        return int((self.space.counts - 1).sum())


def find_scan(anatomy: ModelAnatomy, samples: list[Sample]) -> SensitivityScan | None:
    """The complete scan with the most levels, of equals that of the calibration set that came last; None if none."""
    dense = tuple(layer.ffn_width for layer in anatomy.layers)
    measured: dict[str, list[dict[int, float]]] = {}
    for sample in samples:
        rows = measured.setdefault(sample.calibration_id, [{w: 0.0} for w in dense])
        changed = [i for i, (a, b) in enumerate(zip(sample.widths, dense, strict=True)) if a != b]
        if len(changed) == 1:
            rows[changed[0]][sample.widths[changed[0]]] = sample.metrics.kl
    best: SensitivityScan | None = None
    for calibration_id, rows in measured.items():
        space = _finest_levels(anatomy, rows)
        if space is not None and (best is None or space.counts[0] >= best.space.counts[0]):
            levels = [units.tolist() for units in space.units]
            table = np.array([[row[w] for w in widths] for row, widths in zip(rows, levels, strict=True)])
            scan_id = content_id({"calibration": calibration_id, "widths": levels})
            best = SensitivityScan(scan_id, calibration_id, space, table)
    return best


def _finest_levels(anatomy: ModelAnatomy, rows: list[dict[int, float]]) -> Space | None:
    """The space of most levels whose every width is in `rows` [L]: width -> KL."""
    most = min(_MAX_LEVELS, *(len(row) for row in rows))
    for num_levels in range(most, 1, -1):
        for round_to in _ROUNDINGS:
            try:
                space = ffn_levels(anatomy, num_levels=num_levels, round_to=round_to)
            except InputError:
                continue  # a layer is too narrow for so many
            if all(w in row for row, widths in zip(rows, space.units, strict=True) for w in widths.tolist()):
                return space
    return None


class ScanFinder:
    """`find_scan` over a repository. Samples are never changed, so an answer holds until a model has more of them."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._found: LruCache[tuple[str, int], SensitivityScan | None] = LruCache(_MAX_CACHED)

    def find(self, model: ModelRecord) -> SensitivityScan | None:
        """The scan to allocate by; None if no complete one is stored for the model's ranking."""
        count = self._repository.count_samples(model.id)
        return self._found.get((model.id, count), lambda: self._look(model))

    def _look(self, model: ModelRecord) -> SensitivityScan | None:
        samples = self._repository.list_samples(model.id, ranking_sha256=model.ranking_sha256)
        return find_scan(model.anatomy, samples)
