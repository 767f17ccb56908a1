"""A hardware budget as integer tables: what every option of every decision costs in bytes, operations and time.

The tables are the prices that exact costs are sums of (`pruning.planning.prices`), so choices that meet the limits keep
the budget. They differ in two things: the header of a weight file, whose length depends on all sizes together, is
counted at its longest, and a GGUF file is counted with zeros that it need not have (`gguf_price`). Where that decides
whether anything fits, the smallest choice is counted as it is.
"""

import json
import math
from collections.abc import Callable
from decimal import Decimal
from functools import lru_cache

import numpy as np

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture
from pruning.anatomy.packed_weights import is_packed, packed_headers
from pruning.checkpoints.safetensors_layout import (
    MAX_SHARD_SIZE,
    SAFETENSORS_METADATA,
    safetensors_file_bytes,
    tensor_bytes,
)
from pruning.errors import InputError
from pruning.planning import prices
from pruning.planning.added_biases import added_biases, pruned_tensors
from pruning.planning.cost import weight_file_bytes
from pruning.planning.gguf_price import gguf_bytes
from pruning.planning.latency_model import LatencyModel
from pruning.planning.limits import Limit, Limits
from pruning.planning.prices import Price
from pruning.planning.space import Space
from pruning.planning.workload import Budget


def limits_for_budget(
    anatomy: ModelAnatomy,
    space: Space,
    budget: Budget,
    *,
    latency: LatencyModel | None = None,
    compensates: bool = False,
) -> Limits:
    """All limits of `budget`; with `compensates`, they count the biases that are added to layers that are cut.

    Args:
        anatomy: of the dense model.
        space: what may be chosen.
        budget: what is allowed, for its workload.
        latency: prices that workload; needed where `budget` limits latency.

    Raises:
        InputError: `budget` limits nothing, or latency without a model of it.
        InfeasibleBudgetError: the smallest choice exceeds a limit.
    """
    if not budget.limits:
        raise InputError(
            "a budget limits something",
            values="only a workload",
            remedy="Give memory_bytes, latency_ms, flops, disk_bytes or gguf_bytes, or name a device",
        )
    limits = []
    if budget.memory_bytes is not None:
        memory = prices.memory_bytes(anatomy, budget.workload, compensates=compensates)
        limits.append(memory.limit(space, budget.memory_bytes))
    if budget.latency_ms is not None:
        if latency is None:
            raise InputError("latency is limited on a device", remedy="Name the device, see GET /v1/devices")
        limits.append(latency_limit(anatomy, space, latency, budget.latency_ms))
    if budget.flops is not None:
        operations = prices.flops(anatomy, budget.workload, compensates=compensates)
        limits.append(operations.limit(space, budget.flops))
    if budget.disk_bytes is not None:
        limits.append(_disk_limit(anatomy, space, budget.disk_bytes, compensates))
    if budget.gguf is not None and budget.gguf_bytes is not None:
        price = gguf_bytes(anatomy, budget.gguf, compensates=compensates)
        limits.append(_bounded_limit(price, space, budget.gguf_bytes, price.cost))
    return Limits(space, tuple(limits))


def latency_limit(anatomy: ModelAnatomy, space: Space, latency: LatencyModel, most_ms: float) -> Limit:
    """At most `most_ms` for the workload that `latency` prices."""
    # In decimals: 2.3 ms are 2,300,000 ns, although 2.3 * 1e6 is a little less in binary.
    most = math.floor(Decimal(repr(float(most_ms))) * 1_000_000)
    return prices.LatencyPrice(anatomy, latency).limit(space, most)


def _disk_limit(anatomy: ModelAnatomy, space: Space, most: int, compensates: bool) -> Limit:
    """Weight files, as `Achieved.disk_bytes`, their headers at their longest."""

    def exact(architecture: Architecture) -> int:
        return weight_file_bytes(pruned_tensors(anatomy, architecture, compensates=compensates))

    longest = header_bytes_bound(anatomy, compensates=compensates, packs=space.has_bits)
    price = prices.weight_bytes(anatomy, compensates=compensates, header_bytes=longest)
    return _bounded_limit(price, space, most, exact)


def _bounded_limit(price: Price, space: Space, most: int, exact: Callable[[Architecture], int]) -> Limit:
    """A limit on what is never more than `price` says, and `exact` knows.

    Where the price leaves room for nothing at all, the smallest choice may still fit with what it really costs: then it
    costs just that, and every step from it what the price says more.
    """
    limit = price.limit(space, most)
    if limit.least <= most:
        return limit
    smallest = [int(row.argmin()) for row in limit.costs]
    spare = limit.least - exact(space.architecture(smallest))
    rows = tuple(
        np.where(np.arange(len(row)) == k, row, row + spare) for row, k in zip(limit.costs, smallest, strict=True)
    )
    return Limit(limit.kind, most, limit.fixed - spare, rows)


@lru_cache(maxsize=64)
def header_bytes_bound(
    anatomy: ModelAnatomy, *, compensates: bool = False, packs: bool = False, max_shard_size: int = MAX_SHARD_SIZE
) -> int:
    """The most that weight files can take besides tensor data, whatever the widths.

    A header lists names, shapes and offsets in decimal digits. Cutting layers makes shapes and all offsets behind them
    smaller, never larger, and the order of tensors stays: where the dense model, with every bias that could be added,
    fits one file, its own header is the longest. Where it does not, cutting moves tensors from file to file. Then no
    offset is above S, the most that a file can hold, so each entry is at its longest with the dense shape and offsets
    of S's digits. And of two files that follow each other, tensors fill more than `max_shard_size`, as does a file of
    one tensor alone: there are at most 2 T / `max_shard_size` + 1 files for T bytes.

    With `packs`, weights may be in fewer bits: in the place of each are three tensors then, none larger than it was,
    and all four are counted.
    """
    tensors = [*anatomy.tensors, *(added_biases(anatomy).values() if compensates else ())]
    headers = [(t.name, t.shape, t.dtype) for t in tensors]
    sizes = [tensor_bytes(t.shape, t.dtype) for t in tensors]
    total = sum(sizes)
    if packs:
        headers += [header for t in tensors if is_packed(t) for header in packed_headers(t.name, t.shape, t.dtype, 8)]
    if total <= max_shard_size:
        return safetensors_file_bytes(headers) - sum(tensor_bytes(*header[1:]) for header in headers)
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
