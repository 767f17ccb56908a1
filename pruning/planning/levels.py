"""The discrete widths that a search may choose from, and the integer budgets it has to respect.

A configuration is one level per decoder layer, 1 to K; level K is dense. Level k of layer l keeps
`widths[l][k - 1]` channels and costs `costs[l][k - 1]` parameters.
"""

import itertools
from dataclasses import dataclass
from functools import cached_property

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.errors import InfeasibleTargetError, InputError

Configuration = tuple[int, ...]
"""Levels [L], each in 1..K."""

DEFAULT_NUM_LEVELS = 8
DEFAULT_ROUND_TO = 8


@dataclass(frozen=True)
class LevelGrid:
    """Widths [L][K] and their parameter costs [L][K], both increasing in k.

    Build one with `LevelGrid.build`; equal grids have equal widths and costs.
    """

    widths: tuple[tuple[int, ...], ...]
    costs: tuple[tuple[int, ...], ...]
    round_to: int

    @classmethod
    def build(
        cls, anatomy: ModelAnatomy, *, num_levels: int = DEFAULT_NUM_LEVELS, round_to: int = DEFAULT_ROUND_TO
    ) -> "LevelGrid":
        """K evenly spaced widths per layer, each a multiple of `round_to` (the dense width itself always allowed).

        Raises InputError if a layer is too narrow for `num_levels` different widths.
        """
        if num_levels < 2 or round_to < 1:
            raise InputError(
                "a grid needs num_levels >= 2 and round_to >= 1", values=f"num_levels={num_levels}, round_to={round_to}"
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
        costs = tuple(
            tuple(w * layer.ffn_parameters_per_channel for w in row)
            for row, layer in zip(rows, anatomy.layers, strict=True)
        )
        return cls(widths=tuple(rows), costs=costs, round_to=round_to)

    @property
    def num_layers(self) -> int:
        return len(self.widths)

    @property
    def num_levels(self) -> int:
        return len(self.widths[0])

    @cached_property
    def min_cost_from(self) -> tuple[int, ...]:
        """[L + 1]: the least that layers l.. can cost together; the last entry is 0."""
        return _suffix_sums([row[0] for row in self.costs])

    @cached_property
    def max_cost_from(self) -> tuple[int, ...]:
        """[L + 1]: what layers l.. cost when dense."""
        return _suffix_sums([row[-1] for row in self.costs])

    @cached_property
    def largest_step(self) -> int:
        """The most that going one level up can cost, in parameters."""
        return max(b - a for row in self.costs for a, b in itertools.pairwise(row))

    def check_budget(self, budget: int) -> None:
        """Raises InfeasibleTargetError if no configuration costs at most `budget` parameters."""
        if budget < self.min_cost_from[0]:
            raise InfeasibleTargetError(
                "the budget is below the cost of the lowest level in every layer",
                values=f"{budget} parameters, lowest configuration costs {self.min_cost_from[0]}",
                remedy="Raise the budget or search with more levels",
                nearest=float(self.min_cost_from[0]),
            )

    def feasible_levels(self, layer: int, remaining: int) -> list[int]:
        """Levels of `layer` from which `remaining` parameters (for layers l..) can be met and, if possible, used up.

        A level is feasible if the layers after it fit at their lowest level, and unless everything is dense
        at most one level step of the budget is left over at the end: a pruning plan never gives capacity away.
        Never empty when the budget was feasible for layers l.. .
        """
        low, high = self.min_cost_from[layer + 1], self.max_cost_from[layer + 1]
        fitting = [k for k, cost in enumerate(self.costs[layer], start=1) if cost + low <= remaining]
        using = [k for k in fitting if remaining - self.costs[layer][k - 1] - high < self.largest_step]
        return using or fitting[-1:]

    def cost(self, configuration: Configuration) -> int:
        """Parameters that `configuration` keeps."""
        return sum(row[k - 1] for row, k in zip(self.costs, configuration, strict=True))

    def widths_of(self, configuration: Configuration) -> list[int]:
        """Integer FFN widths [L]."""
        return [row[k - 1] for row, k in zip(self.widths, configuration, strict=True)]

    def configuration_of(self, widths: list[int]) -> Configuration | None:
        """The configuration with exactly these widths [L], or None if they are not on the grid."""
        if len(widths) != self.num_layers:
            return None
        try:
            return tuple(row.index(w) + 1 for row, w in zip(self.widths, widths, strict=True))
        except ValueError:
            return None


def _suffix_sums(values: list[int]) -> tuple[int, ...]:
    sums = [0]
    for value in reversed(values):
        sums.append(sums[-1] + value)
    return tuple(reversed(sums))
