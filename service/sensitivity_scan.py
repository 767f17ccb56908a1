"""Finds a one-decision scan among the stored samples of a model: what the additive allocator works from."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Option, Sublayer
from pruning.arrays import FloatArray
from pruning.errors import InputError
from pruning.planning.axis_spaces import SPACES_OF_UNITS, SpaceName, fine_space, name_of
from pruning.planning.ffn_spaces import ffn_space
from pruning.planning.plan_parts import content_id
from pruning.planning.space import Choice, Space
from service.finished_searches import searched_axes, searched_space
from service.lru_cache import LruCache
from storage.contract import Findings
from storage.records import ModelRecord, Sample
from values.decisions import check_space

_MAX_CACHED = 64

_logger = logging.getLogger("service.searches")


@dataclass(frozen=True)
class SensitivityScan:
    """KL to dense of every option of every decision while all others are dense.

    Attributes:
        id: a hash of the calibration set and the options; in spaces that are scanned in part, of what was measured,
            too. Samples are immutable, so it stands for the whole scan.
        calibration_id: the set that it was measured on.
        space: what was scanned. It serves requests of any `round_to`: its options are brought down to theirs.
        table: [N, K] in nats; 0 where a decision has no such option. Estimated where a large space was scanned in part.
        num_samples: evaluations that it is made of, the dense model's own not counted.
    """

    id: str
    calibration_id: str
    space: Space
    table: FloatArray
    num_samples: int

    @property
    def num_levels(self) -> int:
        """K."""
        return int(self.table.shape[1])


def find_scan(
    anatomy: ModelAnatomy, samples: Iterable[Sample], spaces: Sequence[Space] = (), name: SpaceName = SpaceName.FFN
) -> SensitivityScan | None:
    """The scan with the most options, of equals that of the calibration set that came last; None if there is none.

    A scan is of one of the `spaces` that were searched. FFN widths are scanned as a whole, other spaces as far as a
    search scans them (`mcts.sensitivity.scan_choices`); what was measured beyond that counts, too. Where no scan of FFN
    widths that were searched is there, it is of the widths that were measured: the same ones in all layers of one
    width, equally many in all layers.
    """
    of_ffn = name is SpaceName.FFN
    known = [space for space in spaces if (_is_table(space, anatomy) if of_ffn else _is_of(space, anatomy, name))]
    by_set: dict[str, list[Sample]] = {}
    for sample in samples:
        if len({site.layer for site, _ in sample.architecture.items}) == 1:  # else it changes several decisions
            by_set.setdefault(sample.calibration_id, []).append(sample)
    best: SensitivityScan | None = None
    for calibration_id, scored in by_set.items():
        found = [scan for space in known if (scan := _scan(space, calibration_id, scored, name)) is not None]
        if not found and of_ffn and (widths := _measured_widths(anatomy, scored)) is not None:
            found = [scan for scan in [_scan(ffn_space(widths), calibration_id, scored, name)] if scan is not None]
        scan = max(found, key=_num_options, default=None)
        if scan is not None and (best is None or _num_options(scan) >= _num_options(best)):
            best = scan
    return best


def _num_options(scan: SensitivityScan) -> int:
    return int(scan.space.counts.sum())


def _scan(space: Space, calibration_id: str, samples: Iterable[Sample], name: SpaceName) -> SensitivityScan | None:
    """The scan of `space` among the `samples` of a calibration set; None if something of it is missing."""
    from mcts.sensitivity import MAX_SCAN_EVALUATIONS, scan_choices, scan_table

    measured: dict[Choice, float] = {}
    for sample in samples:
        choice = space.choice_of(sample.architecture)
        if choice is not None and sum(k < last for k, last in zip(choice, space.top, strict=True)) == 1:
            measured[choice] = sample.metrics.kl
    of_ffn = name is SpaceName.FFN
    most = None if of_ffn or name.has_bits else MAX_SCAN_EVALUATIONS
    if any(x not in measured for x in scan_choices(space, most)[1:]):
        return None
    key: dict[str, Any] = {"widths": [row.tolist() for row in space.units]}
    if not of_ffn:
        key = {"space": space.document(), "measured": sorted(measured)}
    scan_id = content_id({"calibration": calibration_id} | key)
    table = scan_table(space, measured | {space.top: 0.0})
    return SensitivityScan(scan_id, calibration_id, space, table, len(measured))


def _is_table(space: Space, anatomy: ModelAnatomy) -> bool:
    """Whether it decides the FFN width of every layer, each among equally many, the dense one the last."""
    return (
        ffn_space(space.units).document() == space.document()
        and space.of_ladders
        and len(set(space.counts.tolist())) == 1
        and space.units_of(space.top) == anatomy.dense_units(Sublayer.FFN)
    )


def _is_of(space: Space, anatomy: ModelAnatomy, name: SpaceName) -> bool:
    """Whether it decides what plans of that name decide, each decision from few units to all of them."""
    try:
        if name in SPACES_OF_UNITS:  # of others values and policy know nothing
            check_space(space)
        fine = fine_space(anatomy, name, round_to=1)
    except InputError:
        return False
    of_model = all(fine.dense.get(site) == units for site, units in space.dense.items())
    return name_of(space) is name and of_model and fine.places_of(space) is not None


def _measured_widths(anatomy: ModelAnatomy, samples: Iterable[Sample]) -> list[list[int]] | None:
    """[L][K] FFN widths: the dense one and those of single cuts; None if some are missing in a layer."""
    dense = anatomy.dense_units(Sublayer.FFN)
    rows = [{width} for width in dense]
    for sample in samples:
        (site, option), *others = sample.architecture.items
        if site.sublayer is Sublayer.FFN and not others and option == Option(option.units) and option.units:
            rows[site.layer].add(option.units)
    widths = [sorted(row) for row in rows]
    of_equals: dict[int, list[int]] = {}
    complete = all(of_equals.setdefault(w, row) == row for w, row in zip(dense, widths, strict=True))
    return widths if complete and {len(row) for row in widths} == {max(len(widths[0]), 2)} else None


class ScanFinder:
    """`find_scan` over a repository. What is stored never changes, so an answer holds until a model has more of it."""

    def __init__(self, repository: Findings) -> None:
        self._repository = repository
        self._found: LruCache[tuple[str, SpaceName, int, tuple[str, ...]], SensitivityScan | None]
        self._found = LruCache(_MAX_CACHED)

    def find(self, model: ModelRecord, name: SpaceName = SpaceName.FFN) -> SensitivityScan | None:
        """The scan to allocate by in spaces of that name; None if none is stored for the model's ranking."""
        count = self._repository.count_samples(model.id)
        searches = self._repository.list_search_ids(model.id)
        return self._found.get((model.id, name, count, searches), lambda: self._look(model, name))

    def _look(self, model: ModelRecord, name: SpaceName) -> SensitivityScan | None:
        spaces: dict[str, Space] = {}
        for search in self._repository.list_searches(model.id):
            if searched_axes(search) is not name:
                continue
            try:
                space = searched_space(search, model.anatomy)
            except InputError as error:
                _logger.warning("the space of search %s of model %s is left out: %s", search.id, model.id, error)
            else:
                spaces.setdefault(content_id(space.document()), space)
        samples = self._repository.list_samples(model.id, ranking_sha256=model.ranking_sha256)
        return find_scan(model.anatomy, samples, [*spaces.values()], name)
