"""Latency from a profile's tables, between the rungs that were measured."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Site
from pruning.arrays import FloatArray, IntArray
from pruning.devices.device import Device
from pruning.devices.layered import LayeredLatency, Phases
from pruning.devices.tables import TIMED_DTYPES, AttentionTable, LayerShape, LayerTable, OutsideShape, OutsideTable
from pruning.errors import InputError
from pruning.planning.latency_model import LatencySource, mean_cache_tokens
from pruning.planning.workload import Workload


@dataclass(frozen=True)
class Uncovered:
    """Why a profile does not price a workload: one clause for a plan's note."""

    reason: str


@dataclass(frozen=True)
class Coverage:
    """The tables of a profile that price one workload of one model: one a layer [L], and the rest."""

    layers: tuple[LayerTable, ...]
    outside: OutsideTable


def find_tables(device: Device, anatomy: ModelAnatomy, workload: Workload) -> Coverage | Uncovered:
    """The tables that cover every layer at any width, the prompt, and the mean cache length of decoding."""
    if device.profile is None:
        return Uncovered("nothing was measured on it")
    if anatomy.dtype not in TIMED_DTYPES:
        return Uncovered(f"nothing was measured with weights of {anatomy.dtype}")
    layers = []
    for layer in anatomy.layers:
        table = device.profile.layer_table(LayerShape.is_of(anatomy, layer), workload.batch)
        if table is None:
            return Uncovered(f"layers of this shape were not measured at batch {workload.batch}")
        if table.ffn_widths[-1] < layer.ffn_width:
            return Uncovered(f"FFNs were measured up to width {table.ffn_widths[-1]}, not {layer.ffn_width}")
        layers.append(table)
    outside = device.profile.outside_table(OutsideShape.is_of(anatomy), workload.batch)
    if outside is None:
        return Uncovered(f"embedding, head and vision tower of this shape were not measured at batch {workload.batch}")
    prompt, cache = workload.prompt_tokens, mean_cache_tokens(workload)
    for table in layers:
        for name, axis, value in (("prompts", table.prompt_tokens, prompt), ("caches", table.cache_tokens, cache)):
            if not axis[0] <= value <= axis[-1]:
                return Uncovered(f"{name} were measured from {axis[0]} to {axis[-1]} tokens, not at {value:g}")
    if not outside.prompt_tokens[0] <= prompt <= outside.prompt_tokens[-1]:
        return Uncovered(f"prompts were measured up to {outside.prompt_tokens[-1]} tokens, not at {prompt}")
    return Coverage(tuple(layers), outside)


class MeasuredLatency(LayeredLatency):
    """Linear in the units between two rungs and in the length between two measured lengths.

    A half of fewer units than its lowest rung, and any, costs as much as that rung: time does not grow while units go,
    so this errs to the safe side.
    """

    source = LatencySource.MEASURED

    def __init__(self, device: Device, anatomy: ModelAnatomy, coverage: Coverage, workload: Workload) -> None:
        super().__init__(anatomy, workload)
        self._device, self._tables, self._outside = device, coverage.layers, coverage.outside
        self.times_attention = all(table.attention is not None for table in coverage.layers)
        self.description = f"measured: profile of {device.name} ({device.source})"
        # Many layers share one table: each is cut at the workload's lengths once.
        times = {id(table): LayerTimes.of(table, workload) for table in coverage.layers}
        self._times = tuple(times[id(table)] for table in coverage.layers)

    def layer_phases_ns(self, layer: int, widths: IntArray) -> Phases:
        return self._phases_ns(self._times[layer].at_widths(widths))

    def attention_phases_ns(self, layer: int, groups: IntArray) -> Phases:
        return self._phases_ns(self._times[layer].at_groups(groups))

    def outside_phases_ns(self) -> tuple[int, int]:
        outside, prompt = self._outside, self.workload.prompt_tokens
        prefill_ms = float(np.interp(prompt, outside.prompt_tokens, outside.prefill_ms)) + outside.vision_ms
        first, further = self.nanoseconds(np.array([prefill_ms, outside.decode_ms]) / 1e3)
        return int(first), int(further)

    def kind_of(self, site: Site) -> Hashable:
        return id(self._tables[site.layer]), self._groups[site.layer], site.sublayer

    def untimed(self) -> InputError:
        batch = "" if self.workload.batch == 1 else f" --batch {self.workload.batch}"
        return InputError(
            "a latency where attention or skips may change needs a profile that times them",
            values=f"{self._device.id!r}, measured by an earlier version: FFN widths with whole attention alone",
            remedy=f"Measure it again with this version: `lop device profile {self._device.id} --model ID{batch}`, "
            "or ask for the space 'ffn'",
        )

    def _phases_ns(self, times_ms: tuple[FloatArray, FloatArray]) -> Phases:
        prefill, decode = (self.nanoseconds(row / 1e3) for row in times_ms)
        return prefill, decode


@dataclass(frozen=True)
class LayerTimes:
    """A table at one workload: milliseconds of the prefill and of a decode step, at `widths` [W] with whole attention
    and at `groups` [G] without an FFN, if that was timed."""

    widths: FloatArray
    with_ffn: tuple[FloatArray, FloatArray]
    groups: FloatArray | None
    without_ffn: tuple[FloatArray, FloatArray] | None

    @classmethod
    def of(cls, table: LayerTable, workload: Workload) -> "LayerTimes":
        def at_workload(of: LayerTable | AttentionTable) -> tuple[FloatArray, FloatArray]:
            return (
                _at_length(of.prefill_ms, table.prompt_tokens, workload.prompt_tokens),
                _at_length(of.decode_ms, table.cache_tokens, mean_cache_tokens(workload)),
            )

        groups, without_ffn = None, None
        if table.attention is not None:
            groups, without_ffn = np.array(table.attention.kv_groups, dtype=np.float64), at_workload(table.attention)
        return cls(np.array(table.ffn_widths, dtype=np.float64), at_workload(table), groups, without_ffn)

    def at_widths(self, widths: IntArray) -> tuple[FloatArray, FloatArray]:
        """[K] of each phase."""
        prefill, decode = (_between(widths, self.widths, row) for row in self.with_ffn)
        return prefill, decode

    def at_groups(self, groups: IntArray) -> tuple[FloatArray, FloatArray]:
        """[K] of each phase; with no group what was measured with none."""
        assert self.groups is not None
        assert self.without_ffn is not None
        rungs = self.groups[1:]
        prefill, decode = (np.where(groups > 0, _between(groups, rungs, row[1:]), row[0]) for row in self.without_ffn)
        return prefill, decode


def _between(units: IntArray, rungs: FloatArray, row: FloatArray) -> FloatArray:
    """[K] on the line between the rungs [R] around each of `units`, whose times are `row` [R]."""
    above = row[np.minimum(np.searchsorted(rungs, units), len(rungs) - 1)]
    # No rounding of the line leads beyond the next rung: what keeps more takes no less.
    found: FloatArray = np.minimum(np.interp(units.astype(np.float64), rungs, row), above)
    return found


def _at_length(rows: Sequence[Sequence[float]], lengths: Sequence[int], length: float) -> FloatArray:
    """Rows [P][W] at `length`, which lies within `lengths` [P]."""
    table: FloatArray = np.array(rows, dtype=np.float64)
    above = min(int(np.searchsorted(lengths, length)), len(lengths) - 1)
    below = max(above - 1, 0)
    if above == below:
        only: FloatArray = table[above]
        return only
    share = (length - lengths[below]) / (lengths[above] - lengths[below])
    between: FloatArray = (1 - share) * table[below] + share * table[above]
    return between
