"""Spaces of FFN widths: one decision a layer, its options a ladder of widths."""

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Site, Sublayer
from pruning.arrays import IntArray
from pruning.errors import InputError
from pruning.planning.space import Decision, Options, Space

DEFAULT_NUM_LEVELS = 8
DEFAULT_ROUND_TO = 8


@lru_cache(maxsize=128)
def ffn_levels(
    anatomy: ModelAnatomy, *, num_levels: int = DEFAULT_NUM_LEVELS, round_to: int = DEFAULT_ROUND_TO
) -> Space:
    """The coarse space that searches choose from: `num_levels` evenly spaced widths a layer, the dense one the last.

    Each is a multiple of `round_to`; the dense width itself is always allowed.

    Raises:
        InputError: a layer is too narrow for `num_levels` different widths.
    """
    if num_levels < 2 or round_to < 1:
        raise InputError(
            "levels need num_levels >= 2 and round_to >= 1", values=f"num_levels={num_levels}, round_to={round_to}"
        )
    rows: list[tuple[int, ...]] = []
    for layer in anatomy.layers:
        # Halves go up: Python's own rounding goes to even, which would make uneven steps.
        ladder = [int(layer.ffn_width * k / num_levels / round_to + 0.5) * round_to for k in range(1, num_levels)]
        row = (*ladder, layer.ffn_width)
        if row[0] < 1 or any(a >= b for a, b in itertools.pairwise(row)):
            raise InputError(
                f"layer {layer.index} is too narrow for {num_levels} levels of multiples of {round_to}",
                values=f"ffn_width={layer.ffn_width}",
                remedy="Use fewer levels or a smaller round_to",
            )
        rows.append(row)
    return ffn_space(rows)


@lru_cache(maxsize=128)
def ffn_widths(anatomy: ModelAnatomy, *, round_to: int, tp_size: int = 1) -> Space:
    """The fine space that plans are made in: multiples of `round_to` that `tp_size` divides, and the dense width if
    `tp_size` divides it.

    Raises:
        InputError: one of the two is below 1, a layer has no such width, or its heads cannot be divided by `tp_size`.
    """
    if round_to < 1 or tp_size < 1:
        raise InputError(
            "round_to and tp_size must be at least 1",
            values=f"round_to={round_to}, tp_size={tp_size}",
            remedy="Ask for a round_to of 8, 64 or 128",
        )
    check_tensor_parallel(anatomy, tp_size)
    step = math.lcm(round_to, tp_size)
    rows: dict[int, IntArray] = {}
    for layer in anatomy.layers:
        if layer.ffn_width in rows:
            continue
        last = [layer.ffn_width] if layer.ffn_width % tp_size == 0 else []
        row = np.append(np.arange(step, layer.ffn_width, step, dtype=np.int64), np.array(last, dtype=np.int64))
        if not len(row):
            raise InputError(
                f"tp_size must divide a width of every layer that is a multiple of {round_to}, or dense",
                values=f"tp_size={tp_size}, layer {layer.index} has {layer.ffn_width} channels",
                remedy="Ask for a tp_size that divides the FFN width",
            )
        rows[layer.ffn_width] = row
    dense = anatomy.dense_units(Sublayer.FFN)
    return ffn_space([rows[width] for width in dense], dense)


def ffn_space(widths: Sequence[Sequence[int] | IntArray], dense: Sequence[int] | None = None) -> Space:
    """One decision a layer: FFN `widths` [L][K], ascending. `dense` [L] is by default the last of each."""
    rows = [np.asarray(row, dtype=np.int64) for row in widths]
    decisions = tuple(Decision((Site(n, Sublayer.FFN),), (Options(row),)) for n, row in enumerate(rows))
    most = [int(row[-1]) for row in rows] if dense is None else dense
    return Space(decisions, {decision.sites[0]: units for decision, units in zip(decisions, most, strict=True)})


def check_tensor_parallel(anatomy: ModelAnatomy, tp_size: int) -> None:
    """Raises InputError unless `tp_size` devices can share the heads of every layer evenly.

    Query heads are divided among the devices; KV groups too, or, where there are fewer of them, each is held by
    several devices.
    """
    for layer in anatomy.layers:
        heads, groups = layer.num_heads, layer.num_kv_groups
        if heads % tp_size or (groups % tp_size and tp_size % groups):
            fitting = [n for n in range(1, heads + 1) if not heads % n and (not groups % n or not n % groups)]
            raise InputError(
                "tp_size must divide the attention heads, and divide the KV groups or be a multiple of them",
                values=f"tp_size={tp_size}, layer {layer.index} has {heads} heads in {groups} KV groups",
                remedy=f"Ask for a tp_size of {', '.join(map(str, fitting))}",
            )
