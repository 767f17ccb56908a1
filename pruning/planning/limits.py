"""Hard limits as integer tables: what every allowed width of every layer costs, under each limit.

Whatever a request asks for (a sparsity, bytes, milliseconds, operations), methods see the same thing: for each limit a
fixed cost and one non-decreasing cost a layer, which must add up to at most so much. All integers, so nothing is ever
exceeded by rounding.

Letters: J limits, L decoder layers, N allowed widths of the layer that has most.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from functools import cached_property

import numpy as np

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.arrays import FloatArray, IntArray
from pruning.errors import InfeasibleBudgetError, InputError
from pruning.planning.added_biases import bias_parameters

Worth = Callable[[IntArray], FloatArray] | Sequence[float] | FloatArray
"""What channels are worth, in any unit: what one of each layer is worth, [L], or a function of the present widths [L]
that says so; or [L, N], what each allowed width is worth as a whole. Only the last tells the two directions apart: a
step down loses what the channels below are worth, a step up gains what those above are."""

NEVER = 2**62
"""Cost of a width that a layer does not have."""


class LimitKind(StrEnum):
    """What is limited. The tables count latency in nanoseconds, everything else in the unit of its name."""

    FFN_PARAMETERS = "ffn_parameters"
    MEMORY_BYTES = "memory_bytes"
    LATENCY_MS = "latency_ms"
    FLOPS = "flops"
    DISK_BYTES = "disk_bytes"

    def in_its_unit(self, count: int) -> float | int:
        """A table's `count` as users say it; never less, so that asking for the result is enough."""
        return math.ceil(count / 1e3) / 1e3 if self is LimitKind.LATENCY_MS else count


@dataclass(frozen=True)
class WidthSteps:
    """The FFN widths that a plan may give to each layer, [L] ascending arrays."""

    widths: tuple[IntArray, ...]

    @classmethod
    def build(cls, anatomy: ModelAnatomy, *, round_to: int, tp_size: int = 1) -> "WidthSteps":
        """Multiples of `round_to` that `tp_size` divides, and the dense width if `tp_size` divides it.

        Raises:
            InputError: one of the two is below 1, a layer has no such width, or its heads cannot be divided by
                `tp_size`.
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
        return cls(tuple(rows[layer.ffn_width] for layer in anatomy.layers))

    @property
    def num_layers(self) -> int:
        return len(self.widths)

    def at_most(self, widths: Sequence[float] | FloatArray | IntArray) -> IntArray:
        """Indices [L] of the widest allowed widths that are not above `widths` [L]; the narrowest where all are."""
        found = [np.searchsorted(row, w, side="right") - 1 for row, w in zip(self.widths, widths, strict=True)]
        return np.maximum(np.array(found, dtype=np.int64), 0)

    def not_below(self, widths: Sequence[int]) -> "WidthSteps":
        """These without what is narrower than `widths` [L]; a layer that is narrower throughout keeps its widest."""
        first = (min(int(np.searchsorted(row, w)), len(row) - 1) for row, w in zip(self.widths, widths, strict=True))
        return WidthSteps(tuple(row[i:] for row, i in zip(self.widths, first, strict=True)))

    @cached_property
    def narrowest(self) -> list[int]:
        """The least allowed widths [L]."""
        return [int(row[0]) for row in self.widths]

    @cached_property
    def widest(self) -> list[int]:
        """The greatest allowed widths [L]: dense, unless `tp_size` does not divide that."""
        return [int(row[-1]) for row in self.widths]

    def of(self, indices: IntArray) -> list[int]:
        """Widths [L] at `indices` [L]."""
        return [int(row[i]) for row, i in zip(self.widths, indices, strict=True)]

    @cached_property
    def table(self) -> IntArray:
        """[L, N] widths, `NEVER` behind the last of each layer."""
        return _padded(self.widths)


@dataclass(frozen=True)
class Limit:
    """At most `most`: the `fixed` cost and what every layer costs, [L] arrays along its allowed widths.

    Raises:
        ValueError: costs that are negative or fall while the width grows. A programming error: profiles are checked
            where they come in.
    """

    kind: LimitKind
    most: int
    fixed: int
    costs: tuple[IntArray, ...]

    def __post_init__(self) -> None:
        if any(int(row[0]) < 0 or bool((np.diff(row) < 0).any()) for row in self.costs):
            raise ValueError(f"the costs of limit {self.kind} must grow with the width")

    @cached_property
    def least(self) -> int:
        """What the narrowest allowed model costs."""
        return self.fixed + sum(int(row[0]) for row in self.costs)

    @cached_property
    def dense(self) -> int:
        """What the widest allowed model costs."""
        return self.fixed + sum(int(row[-1]) for row in self.costs)


@dataclass(frozen=True)
class Limits:
    """All limits of one request, over the same allowed widths. At least one; see `check`."""

    steps: WidthSteps
    limits: tuple[Limit, ...]

    def check(self) -> None:
        """Raises InfeasibleBudgetError if the narrowest model exceeds a limit.

        Every cost grows with every width, so the narrowest model is the nearest feasible one under all limits at once.
        """
        broken = [limit for limit in self.limits if limit.least > limit.most]
        if not broken:
            return
        binding = max(broken, key=lambda limit: limit.least / max(limit.most, 1))
        nearest = {limit.kind.value: limit.kind.in_its_unit(max(limit.least, limit.most)) for limit in self.limits}
        asked = {limit.kind.value: limit.kind.in_its_unit(limit.most) for limit in broken}
        raise InfeasibleBudgetError(
            f"the smallest plan needs {binding.kind} = {nearest[binding.kind]}",
            values=", ".join(f"{kind}={value}" for kind, value in asked.items()),
            remedy="Ask for at least " + ", ".join(f"{kind}={nearest[kind]}" for kind in asked),
            binding=binding.kind.value,
            nearest_values=nearest,
        )

    @property
    def allows_everything(self) -> bool:
        """The widest allowed model meets every limit."""
        return all(limit.dense <= limit.most for limit in self.limits)

    @cached_property
    def table(self) -> IntArray:
        """[J, L, N] costs, `NEVER` behind the last width of each layer."""
        return np.stack([_padded(limit.costs) for limit in self.limits])

    @cached_property
    def room(self) -> IntArray:
        """[J] what all layers together may cost; never more than they can."""
        return np.array([min(limit.most, limit.dense) - limit.fixed for limit in self.limits], dtype=np.int64)

    @cached_property
    def binding(self) -> Limit:
        """The limit that takes most: the one under which the largest share of what widths decide has to go."""
        return max(self.limits, key=lambda x: Fraction(x.dense - x.most, max(x.dense - x.least, 1)))

    def slack(self, indices: IntArray) -> IntArray:
        """[J] what `indices` [L] leave over; negative where a limit is exceeded."""
        slack: IntArray = self.room - self.table[:, np.arange(self.steps.num_layers), indices].sum(axis=1)
        return slack

    def repair(self, widths: Sequence[float], worth: Worth | None = None) -> list[int]:
        """Allowed widths [L] near `widths` [L] that meet every limit, and of which none can grow by one more step.

        Steps are taken from the layer whose channels are worth least for what they free of the limit that is exceeded
        most, and given to the one whose channels are worth most for what they take of the slack. By default a channel
        is worth its layer's relative narrowness.

        Raises:
            InfeasibleBudgetError: as `check`.
        """
        self.check()
        indices = self.steps.at_most(widths)
        self._shrink(indices, worth)
        return self.steps.of(self.fill(indices, worth))

    def fill(self, indices: IntArray, worth: Worth | None = None) -> IntArray:
        """`indices` [L] that meet every limit, raised as in `repair` until none can grow by one more step."""
        filled = indices.copy()
        self._grow(filled, worth)
        return filled

    def _shrink(self, indices: IntArray, worth: Worth | None) -> None:
        layers = np.arange(self.steps.num_layers)
        span = np.array([max(limit.dense - limit.least, 1) for limit in self.limits])
        slack = self.slack(indices)
        while (slack < 0).any():
            worst = int(np.argmin(slack / span))
            below = np.maximum(indices - 1, 0)
            freed = self.table[:, layers, indices] - self.table[:, layers, below]
            # On a flat stretch of every layer nothing is freed by one step: the least valuable one goes on.
            useful = freed[worst] > 0 if freed[worst].any() else indices > 0
            able = np.flatnonzero(useful)
            lost = self._worth(worth, able, indices, below)
            layer = able[np.argmin(lost / np.maximum(freed[worst, able], 1))]
            slack += freed[:, layer]
            indices[layer] -= 1

    def _grow(self, indices: IntArray, worth: Worth | None) -> None:
        layers = np.arange(self.steps.num_layers)
        slack = self.slack(indices)
        count = np.array([len(row) for row in self.steps.widths])
        while True:
            above = np.minimum(indices + 1, count - 1)
            taken = self.table[:, layers, above] - self.table[:, layers, indices]
            able = np.flatnonzero((taken <= slack[:, None]).all(axis=0) & (indices < count - 1))
            if not len(able):
                return
            gained = self._worth(worth, able, indices, above)
            share = (taken[:, able] / (slack[:, None] + 1)).max(axis=0) + 1e-12
            layer = able[np.argmax(gained / share)]
            slack -= taken[:, layer]
            indices[layer] += 1

    def _worth(self, worth: Worth | None, able: IntArray, indices: IntArray, others: IntArray) -> FloatArray:
        """What the channels between `indices` and `others` [L] are worth in the layers `able`."""
        layers = np.arange(self.steps.num_layers)
        widths = self.steps.table[layers, indices]
        channels = np.abs(self.steps.table[layers, others] - widths)[able]
        if worth is None:
            worth = 1.0 - widths / np.asarray(self.steps.widest)
        known = np.asarray(worth(widths) if callable(worth) else worth, dtype=np.float64)
        low, high = np.minimum(indices, others)[able], np.maximum(indices, others)[able]
        found: FloatArray = known[able] * channels if known.ndim == 1 else known[able, high] - known[able, low]
        return found


def parameter_limits(anatomy: ModelAnatomy, steps: WidthSteps, most: int, *, compensates: bool = False) -> Limits:
    """At most `most` FFN parameters: what every sparsity comes to. With `compensates`, added biases count."""
    per_channel = [layer.ffn_parameters_per_channel for layer in anatomy.layers]
    costs = linear_costs(anatomy, steps, per_channel, bias_parameters(anatomy) if compensates else None)
    return Limits(steps, (Limit(LimitKind.FFN_PARAMETERS, most, 0, costs),))


def linear_costs(
    anatomy: ModelAnatomy, steps: WidthSteps, per_channel: Sequence[int], added: Sequence[int] | None = None
) -> tuple[IntArray, ...]:
    """[L] arrays: `per_channel` [L] for every channel, and `added` [L] wherever a layer is narrower than dense.

    Where the last channels to dense are cheaper than what is added, a narrower layer would cost more than the dense
    one: the dense one counts as much then, so that costs never fall while the width grows.

    Raises:
        InputError: the numbers are too large to count with.
    """
    added = added or [0] * anatomy.num_layers
    dense = [layer.ffn_width for layer in anatomy.layers]
    if sum(w * price + extra for w, price, extra in zip(dense, per_channel, added, strict=True)) >= NEVER:
        raise InputError(
            "the costs of a workload must stay below 2**62",
            remedy="Ask for a smaller batch, or a shorter prompt and output",
        )
    return tuple(
        np.maximum.accumulate(row * price + np.where(row < w, extra, 0))
        for row, price, extra, w in zip(steps.widths, per_channel, added, dense, strict=True)
    )


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


def _padded(rows: Sequence[IntArray]) -> IntArray:
    table = np.full((len(rows), max(map(len, rows))), NEVER, dtype=np.int64)
    for padded, row in zip(table, rows, strict=True):
        padded[: len(row)] = row
    return table
