"""Latency from a profile's tables, between the rungs that were measured."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Site, Sublayer
from pruning.arrays import FloatArray, IntArray
from pruning.devices.device import Device
from pruning.devices.tables import TIMED_DTYPES, LayerShape, LayerTable, OutsideShape, OutsideTable
from pruning.errors import InputError
from pruning.planning.latency_model import LatencyModel, LatencySource, mean_cache_tokens
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


class MeasuredLatency(LatencyModel):
    """Linear in the units between two rungs and in the length between two measured lengths.

    What a layer takes is what is left of it when both halves are skipped, then its attention's time and its FFN's, each
    by a ladder of its own. Of a table without one for the attention, all of a layer's time is on its FFN.

    A sub-layer of fewer units than the lowest rung, and any, costs as much as that rung: time does not grow while units
    go, so this errs to the safe side.
    """

    source = LatencySource.MEASURED

    def __init__(self, device: Device, anatomy: ModelAnatomy, coverage: Coverage, workload: Workload) -> None:
        super().__init__(workload)
        self._device, self._tables = device, coverage.layers
        self._dense_groups = tuple(layer.num_kv_groups for layer in anatomy.layers)
        self.times_attention = all(table.attention is not None for table in coverage.layers)
        self.description = f"measured: profile of {device.name} ({device.source})"
        if not self.times_attention:
            self.description += "; of layers with whole attention only"
        self._outside = coverage.outside
        # Many layers share one table: each is cut at the workload's lengths once.
        times = {id(table): LayerTimes.of(table, workload) for table in coverage.layers}
        self._times = tuple(times[id(table)] for table in coverage.layers)

    def site_phases_ns(self, site: Site, units: IntArray) -> tuple[IntArray, IntArray]:
        times = self._times[site.layer]
        if times.attention is None:
            self._check_whole(site, units)
        ladder = times.ffn if site.sublayer is Sublayer.FFN else times.attention
        if ladder is None:
            return np.zeros_like(units), np.zeros_like(units)
        prefill, decode = (self.nanoseconds(row / 1e3) for row in ladder.at(units))
        return prefill, decode

    def kind_of(self, site: Site) -> Hashable:
        return id(self._tables[site.layer]), self._dense_groups[site.layer], site.sublayer

    def fixed_phases_ns(self) -> tuple[int, int]:
        outside, prompt = self._outside, self.workload.prompt_tokens
        prefill_ms = float(np.interp(prompt, outside.prompt_tokens, outside.prefill_ms)) + outside.vision_ms
        first, further = self.nanoseconds(np.array([prefill_ms, outside.decode_ms]) / 1e3).tolist()
        for times in self._times:
            prefill, decode = self.nanoseconds(np.array(times.rest_ms) / 1e3).tolist()
            first, further = first + prefill, further + decode
        return first, further

    def _check_whole(self, site: Site, units: IntArray) -> None:
        """Raises InputError if anything is kept that a table without an attention ladder has no time for."""
        least = 1 if site.sublayer is Sublayer.FFN else self._dense_groups[site.layer]
        if int(units.min()) < least:
            batch = "" if self.workload.batch == 1 else f" --batch {self.workload.batch}"
            raise InputError(
                "a latency where attention or skips may change needs a profile that times them",
                values=f"{self._device.id!r}, measured by an earlier version: FFN widths with whole attention alone",
                remedy=f"Measure it again with this version: `lop device profile {self._device.id} --model ID{batch}`, "
                "or ask for the space 'ffn'",
            )


@dataclass(frozen=True)
class Ladder:
    """Times of a sub-layer along its units [R] at one workload, in milliseconds; none without units."""

    units: FloatArray
    prefill_ms: FloatArray
    decode_ms: FloatArray

    def at(self, units: IntArray) -> tuple[FloatArray, FloatArray]:
        """[K] of each phase."""
        prefill, decode = (
            np.where(units > 0, np.interp(units.astype(np.float64), self.units, row), 0.0)
            for row in (self.prefill_ms, self.decode_ms)
        )
        return prefill, decode


@dataclass(frozen=True)
class LayerTimes:
    """One layer at one workload: its FFN's ladder and its attention's, None if that was not timed; and what is left of
    it when both are skipped, prefill and decode."""

    ffn: Ladder
    attention: Ladder | None
    rest_ms: tuple[float, float]

    @classmethod
    def of(cls, table: LayerTable, workload: Workload) -> "LayerTimes":
        prompts, caches = table.prompt_tokens, table.cache_tokens
        prompt, cache = workload.prompt_tokens, mean_cache_tokens(workload)
        ffn = _at_length(table.prefill_ms, prompts, prompt), _at_length(table.decode_ms, caches, cache)
        widths: FloatArray = np.array(table.ffn_widths, dtype=np.float64)
        if table.attention is None:
            return cls(Ladder(widths, *ffn), None, (0.0, 0.0))
        halves = table.attention
        attention = _at_length(halves.prefill_ms, prompts, prompt), _at_length(halves.decode_ms, caches, cache)
        groups: FloatArray = np.array(halves.kv_groups[1:], dtype=np.float64)
        # Rungs of the FFN are whole layers, and those of the attention are layers without an FFN, the first of them
        # without either: a dense layer takes what was measured of it, whichever way it is added up.
        return cls(
            Ladder(widths, *(row - whole[-1] for row, whole in zip(ffn, attention, strict=True))),
            Ladder(groups, *(row[1:] - row[0] for row in attention)),
            (float(attention[0][0]), float(attention[1][0])),
        )


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
