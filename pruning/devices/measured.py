"""Latency from a profile's tables, between the rungs that were measured."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.arrays import FloatArray, IntArray
from pruning.devices.device import Device
from pruning.devices.profile import TIMED_DTYPES, LayerShape, LayerTable, OutsideShape, OutsideTable
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
    """Linear in the width between two rungs and in the length between two measured lengths.

    A layer narrower than the lowest rung costs as much as that rung: time does not grow while a width shrinks, so this
    errs to the safe side.
    """

    source = LatencySource.MEASURED

    def __init__(self, device: Device, coverage: Coverage, workload: Workload) -> None:
        super().__init__(workload)
        self._tables = coverage.layers
        self._outside = coverage.outside
        self.description = f"measured: profile of {device.name} ({device.source})"
        # Many layers share one table: each is cut at the workload's lengths once.
        cuts = {id(table): _at_workload(table, workload) for table in coverage.layers}
        self._rows = tuple(cuts[id(table)] for table in coverage.layers)

    def layer_phases_ns(self, layer: int, widths: IntArray) -> tuple[IntArray, IntArray]:
        rungs = np.array(self._tables[layer].ffn_widths, dtype=np.float64)
        prefill, decode = (np.interp(widths.astype(np.float64), rungs, row) for row in self._rows[layer])
        return self.nanoseconds(prefill / 1e3), self.nanoseconds(decode / 1e3)

    def fixed_phases_ns(self) -> tuple[int, int]:
        outside, prompt = self._outside, self.workload.prompt_tokens
        prefill_ms = float(np.interp(prompt, outside.prompt_tokens, outside.prefill_ms)) + outside.vision_ms
        first, further = self.nanoseconds(np.array([prefill_ms, outside.decode_ms]) / 1e3)
        return int(first), int(further)


def _at_workload(table: LayerTable, workload: Workload) -> tuple[FloatArray, FloatArray]:
    """The ladder's prefill and decode times [W] at the workload's lengths, in milliseconds."""
    prefill = _at_length(table.prefill_ms, table.prompt_tokens, workload.prompt_tokens)
    return prefill, _at_length(table.decode_ms, table.cache_tokens, mean_cache_tokens(workload))


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
