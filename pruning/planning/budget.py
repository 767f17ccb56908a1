"""A hardware budget as integer tables: what every allowed width of every layer costs in bytes, operations and time.

Every table bounds what `pruning.planning.cost.price` says from above, so that widths that meet the limits keep the
budget. They are exact but for one thing: the header of a weight file, whose length depends on all widths together.
Where that decides whether anything fits, the narrowest widths are counted with the header that they really have.
"""

import json
import math
from decimal import Decimal

import numpy as np

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.decoder_layer import Unit
from pruning.checkpoints.safetensors_layout import (
    MAX_SHARD_SIZE,
    SAFETENSORS_METADATA,
    safetensors_file_bytes,
    tensor_bytes,
)
from pruning.errors import InputError
from pruning.planning.activations import activation_bytes
from pruning.planning.added_biases import added_biases, bias_parameters
from pruning.planning.cost import flops, kv_cache_bytes, price
from pruning.planning.latency_model import LatencyModel
from pruning.planning.limits import Limit, LimitKind, Limits, WidthSteps, linear_costs
from pruning.planning.workload import Budget, Workload


def limits_for_budget(
    anatomy: ModelAnatomy,
    steps: WidthSteps,
    budget: Budget,
    *,
    latency: LatencyModel | None = None,
    compensates: bool = False,
) -> Limits:
    """All limits of `budget`; with `compensates`, they count the biases that are added to layers that are cut.

    Args:
        anatomy: of the dense model.
        steps: the widths to choose from.
        budget: what is allowed, for its workload.
        latency: prices that workload; needed where `budget` limits latency.

    Raises:
        InputError: `budget` limits nothing, or latency without a model of it.
        InfeasibleBudgetError: the narrowest model exceeds a limit.
    """
    if budget.limits_nothing:
        raise InputError(
            "a budget limits something",
            values="only a workload",
            remedy="Give memory_bytes, latency_ms, flops or disk_bytes, or name a device",
        )
    costs = _Costs(anatomy, steps, budget.workload, compensates)
    limits = []
    if budget.memory_bytes is not None:
        limits.append(costs.memory(budget.memory_bytes))
    if budget.latency_ms is not None:
        if latency is None:
            raise InputError("latency is limited on a device", remedy="Name the device, see GET /v1/devices")
        limits.append(latency_limit(steps, latency, budget.latency_ms))
    if budget.flops is not None:
        limits.append(costs.flops(budget.flops))
    if budget.disk_bytes is not None:
        limits.append(costs.disk(budget.disk_bytes))
    found = Limits(steps, tuple(limits))
    found.check()
    return found


def latency_limit(steps: WidthSteps, latency: LatencyModel, most_ms: float) -> Limit:
    """At most `most_ms` for the workload that `latency` prices."""
    rows = tuple(latency.layer_ns(layer, widths) for layer, widths in enumerate(steps.widths))
    # In decimals: 2.3 ms are 2,300,000 ns, although 2.3 * 1e6 is a little less in binary.
    most = math.floor(Decimal(repr(float(most_ms))) * 1_000_000)
    return Limit(LimitKind.LATENCY_MS, most, latency.fixed_ns(), rows)


class _Costs:
    """The tables of one model, with biases or without."""

    def __init__(self, anatomy: ModelAnatomy, steps: WidthSteps, workload: Workload, compensates: bool) -> None:
        self._anatomy = anatomy
        self._steps = steps
        self._workload = workload
        self._compensates = compensates
        self._dense = [layer.ffn_width for layer in anatomy.layers]

    def memory(self, most: int) -> Limit:
        """Weights, KV cache and activations, as `Achieved.memory_bytes`."""
        fixed = kv_cache_bytes(self._anatomy, self._workload) + activation_bytes(self._anatomy, self._workload)
        return self._bytes(LimitKind.MEMORY_BYTES, most, fixed)

    def disk(self, most: int) -> Limit:
        """Weight files, as `Achieved.disk_bytes`, their headers at their longest.

        Where that leaves room for no widths at all, the narrowest may still fit with the header that they really have:
        then they cost just that, and a layer that is wider adds what the longest header takes more.
        """
        longest = header_bytes_bound(self._anatomy, compensates=self._compensates)
        limit = self._bytes(LimitKind.DISK_BYTES, most, longest)
        if limit.least <= most:
            return limit
        narrowest = price(self._anatomy, self._steps.narrowest, compensates=self._compensates).disk_bytes
        spare = limit.least - narrowest
        rows = tuple(np.append(row[:1], row[1:] + spare) for row in limit.costs)
        return Limit(limit.kind, most, limit.fixed - spare, rows)

    def flops(self, most: int) -> Limit:
        """Operations, as `Achieved.flops`: linear in the widths, so the dense model's tell the fixed part."""
        # What one parameter of a layer costs: a multiply-add for each position that passes it.
        positions = self._workload.prompt_tokens + max(self._workload.output_tokens - 1, 0)
        each_parameter = 2 * self._workload.batch * positions
        added = bias_parameters(self._anatomy) if self._compensates else [0] * self._anatomy.num_layers
        per_channel = [layer.ffn_parameters_per_channel * each_parameter for layer in self._anatomy.layers]
        costs = linear_costs(self._anatomy, self._steps, per_channel, [bias * each_parameter for bias in added])
        dense = sum(w * each for w, each in zip(self._dense, per_channel, strict=True))
        return Limit(LimitKind.FLOPS, most, flops(self._anatomy, self._dense, self._workload) - dense, costs)

    def _bytes(self, kind: LimitKind, most: int, fixed: int) -> Limit:
        per_channel, biases = [0] * self._anatomy.num_layers, [0] * self._anatomy.num_layers
        for tensor in self._anatomy.tensors:
            size = tensor_bytes(tensor.shape, tensor.dtype)
            if tensor.layer is None or not tensor.holds(Unit.FFN_CHANNEL):
                fixed += size
            else:
                per_channel[tensor.layer] += size // self._dense[tensor.layer]
        if self._compensates:
            for layer, bias in added_biases(self._anatomy).items():
                biases[layer] = tensor_bytes(bias.shape, bias.dtype)
        return Limit(kind, most, fixed, linear_costs(self._anatomy, self._steps, per_channel, biases))


def header_bytes_bound(
    anatomy: ModelAnatomy, *, compensates: bool = False, max_shard_size: int = MAX_SHARD_SIZE
) -> int:
    """The most that weight files can take besides tensor data, whatever the widths.

    A header lists names, shapes and offsets in decimal digits. Cutting layers makes shapes and all offsets behind them
    smaller, never larger, and the order of tensors stays: where the dense model, with every bias that could be added,
    fits one file, its own header is the longest. Where it does not, cutting moves tensors from file to file. Then no
    offset is above S, the most that a file can hold, so each entry is at its longest with the dense shape and offsets
    of S's digits. And of two files that follow each other, tensors fill more than `max_shard_size`, as does a file of
    one tensor alone: there are at most 2 T / `max_shard_size` + 1 files for T bytes.
    """
    tensors = [*anatomy.tensors, *(added_biases(anatomy).values() if compensates else ())]
    headers = [(t.name, t.shape, t.dtype) for t in tensors]
    sizes = [tensor_bytes(t.shape, t.dtype) for t in tensors]
    total = sum(sizes)
    if total <= max_shard_size:
        return safetensors_file_bytes(headers) - total
    largest = max(max_shard_size, *sizes)
    longest = {
        name: {"dtype": dtype, "shape": list(shape), "data_offsets": [largest, largest]}
        for name, shape, dtype in headers
    }
    files = 2 * total // max_shard_size + 1
    empty = len(json.dumps({"__metadata__": SAFETENSORS_METADATA}, separators=(",", ":")))
    entries = len(json.dumps(longest, separators=(",", ":"), ensure_ascii=False).encode())
    # A file has 8 bytes of length before its header, and up to 7 of padding behind it.
    return entries + files * (8 + empty + 7)
