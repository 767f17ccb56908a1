"""Single weights set to zero: which ones, and what becomes of the others.

Wanda (arXiv 2306.11695): the score of weight [i, j] is |W_ij| ||x_j||, x_j the values of input j over all tokens; of
each output the weights that score least go. SparseGPT (arXiv 2301.00774): in each block of 128 inputs the weights go
whose w^2 / U_jj^2 is least, and the inputs that follow make up for them (`column_sweep`). With a pattern N:M both keep
N of every M inputs in a row, for each output.

Where the papers cut at a threshold and round down, the number of zeros is exact here, so that methods are compared at
equal numbers.

Letters: D outputs, A inputs, n inputs of a block.
"""

import re
from dataclasses import dataclass
from typing import Self

import torch

from pruning.cutting.rewriting.column_sweep import BLOCK, sweep
from pruning.errors import InputError
from pruning.planning.zeroed import num_zeros


@dataclass(frozen=True, slots=True)
class Pattern:
    """At most `kept` of every `of` inputs in a row are not zero, for each output."""

    kept: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Of N:M; raises InputError if it is none."""
        match = re.fullmatch(r"(\d{1,4}):(\d{1,4})", text.strip())
        if match is None or not 0 < int(match[1]) < int(match[2]):
            raise InputError("a pattern is N:M, N of M weights kept, with 0 < N < M", values=repr(text), remedy="2:4")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.kept}:{self.of}"

    @property
    def density(self) -> float:
        """Share of the weights that are kept."""
        return self.kept / self.of

    def check(self, name: str, inputs: int) -> None:
        """Raises InputError that names the projection if `inputs` are no multiple of M."""
        if inputs % self.of:
            raise InputError(
                f"the pattern {self} needs inputs in whole groups of {self.of}",
                values=f"{name} has {inputs:,} inputs",
                remedy="Choose an M that divides them, or --sparsity without a pattern",
            )


def wanda(weight: torch.Tensor, squares: torch.Tensor, density: float, pattern: Pattern | None = None) -> torch.Tensor:
    """`weight` [D, A] with zeros, in its dtype.

    Of every output equally many go; what is left over by division goes from those outputs whose next weight scores
    least.

    Args:
        squares: [A] sum of the squares of each input.
        density: share that stays; the pattern's own if there is one.
    """
    scores = weight.float().abs() * squares.sqrt().float()
    if pattern is not None:
        return weight.masked_fill(_least_of_groups(scores, pattern), 0)
    each, over = divmod(num_zeros(weight.numel(), density), len(weight))
    if each == weight.shape[1]:
        return torch.zeros_like(weight)
    order = scores.argsort(dim=1, stable=True)
    zeroed = torch.zeros_like(scores, dtype=torch.bool)
    zeroed.scatter_(1, order[:, :each], True)
    following = order[:, each]
    rows = scores.gather(1, following[:, None])[:, 0].argsort(stable=True)[:over]
    zeroed[rows, following[rows]] = True
    return weight.masked_fill(zeroed, 0)


def sparsegpt(
    weight: torch.Tensor, factor: torch.Tensor, density: float, pattern: Pattern | None = None
) -> torch.Tensor:
    """The weights [D, A] of which a share is zero and the others make up for it, in the dtype of `factor`.

    Args:
        weight: [D, A].
        factor: U [A, A], of `inverse_factor`.
        density: share that stays; the pattern's own if there is one.
    """
    return sweep(weight, factor, _Zeroing(density, pattern))


class _Zeroing:
    """Zeros where w^2 / U_jj^2 is least: of each block alike, or N of every M."""

    def __init__(self, density: float, pattern: Pattern | None) -> None:
        self.group = BLOCK if pattern is None else pattern.of
        self._density, self._pattern = density, pattern
        self._first, self._zeroed = 0, torch.empty(0)
        self._seen = self._done = 0

    def start(self, first: int, rows: torch.Tensor, diagonal: torch.Tensor) -> None:
        scores = (rows / diagonal[:, None]).square()
        self._first = first
        if self._pattern is not None:
            self._zeroed = _least_of_groups(scores.T, self._pattern).T
            return
        self._seen += rows.numel()
        count = num_zeros(self._seen, self._density) - self._done
        self._done += count
        zeroed = torch.zeros(scores.numel(), dtype=torch.bool, device=rows.device)
        zeroed[scores.flatten().argsort(stable=True)[:count]] = True
        self._zeroed = zeroed.view_as(scores)

    def rounded(self, index: int, weights: torch.Tensor) -> torch.Tensor:
        return weights.masked_fill(self._zeroed[index - self._first], 0)


def _least_of_groups(scores: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """[D, A] true for the M - N that score least of every M inputs in a row."""
    groups = scores.reshape(len(scores), -1, pattern.of)
    least = groups.argsort(dim=2, stable=True)[..., : pattern.of - pattern.kept]
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(2, least, True).flatten(1)
