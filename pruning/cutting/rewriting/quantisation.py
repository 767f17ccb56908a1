"""Weights in few bits: groups of inputs share a scale for each output, symmetric, by rounding or by GPTQ.

A weight is s q with q a whole number of b bits, -2^(b-1) <= q < 2^(b-1), and s the scale of its group. s is searched:
of `FRACTIONS` of the scale that the largest weight of the group asks for, the one with the least sum of
h_j (w - s q)^2, h_j what an error at input j weighs. Rounded to nearest, h_j is the mean square of the input, or 1
without data. GPTQ (arXiv 2210.17323) goes through the inputs in order, those that follow make good what rounding did
(`column_sweep`); there h_j = 1 / U_jj^2, and a group's scales are searched when its turn comes.

What counts is what will be read back: scales are rounded to the dtype that they are stored in first, and products too.

Letters: D outputs, A inputs, g inputs of a group.
"""

from dataclasses import dataclass

import torch

from pruning.cutting.rewriting.column_sweep import sweep
from pruning.errors import InputError

BITS = (4, 8)
GROUPS = (32, 64, 128)

FRACTIONS = tuple(0.5 + 0.02 * step for step in range(31))
"""What scales are searched among: below 1 the largest weights are clipped, and all others rounded more finely."""


@dataclass(frozen=True, slots=True)
class IntFormat:
    """Symmetric whole numbers of `bits` bits, with a scale for every `group` inputs of an output.

    Raises InputError for what runtimes do not read.
    """

    bits: int
    group: int

    def __post_init__(self) -> None:
        for name, value, known in (("bits", self.bits, BITS), ("group size", self.group, GROUPS)):
            if value not in known:
                raise InputError(f"{name} must be one of {', '.join(map(str, known))}", values=str(value))

    @property
    def least(self) -> int:
        return -(1 << (self.bits - 1))

    @property
    def greatest(self) -> int:
        return (1 << (self.bits - 1)) - 1

    def check(self, name: str, inputs: int) -> None:
        """Raises InputError that names the projection if its inputs are no whole groups."""
        if inputs % self.group:
            fitting = [x for x in GROUPS if inputs % x == 0]
            raise InputError(
                f"inputs must come in whole groups of {self.group}",
                values=f"{name} has {inputs:,} inputs",
                remedy=f"Choose --group {max(fitting)}" if fitting else "No group size divides them",
            )


@dataclass(frozen=True, eq=False)
class Quantised:
    """`codes` [D, A] int8, and `scales` [D, A / g] in the dtype that they are stored in."""

    codes: torch.Tensor
    scales: torch.Tensor

    @property
    def weight(self) -> torch.Tensor:
        """[D, A] in the dtype of the scales: what is read back."""
        groups = self.codes.to(self.scales.dtype).reshape(*self.scales.shape, -1)
        return (groups * self.scales[..., None]).flatten(1)


def round_to_nearest(
    weight: torch.Tensor, form: IntFormat, importance: torch.Tensor | None, dtype: torch.dtype
) -> Quantised:
    """`weight` [D, A] with searched scales; `importance` [A] is h, by default 1; scales are stored in `dtype`."""
    groups = weight.float().reshape(len(weight), -1, form.group)
    h = torch.ones(weight.shape[1], device=weight.device) if importance is None else importance.float()
    scales = _searched_scales(groups, h.view(-1, form.group), form, dtype)
    codes = _codes(groups, scales[..., None], form)
    return Quantised(codes.to(torch.int8).flatten(1), scales)


def gptq(
    weight: torch.Tensor,
    factor: torch.Tensor,
    form: IntFormat,
    dtype: torch.dtype,
    zeros: torch.Tensor | None = None,
) -> Quantised:
    """`weight` [D, A] by GPTQ, `factor` U [A, A] of `inverse_factor`; scales are stored in `dtype`.

    Where `zeros` [D, A] is true the codes are 0, whatever the inputs before would have made good there, and what that
    loses is for those that follow: SparseGPT's joint step (arXiv 2301.00774, section 3.5).
    """
    rule = _Rounding(form, dtype, torch.zeros_like(weight, dtype=torch.bool) if zeros is None else zeros)
    sweep(weight, factor, rule)
    return Quantised(torch.stack(rule.codes, dim=1), torch.stack(rule.scales, dim=1))


class _Rounding:
    """Each group by scales that are searched when it begins."""

    def __init__(self, form: IntFormat, dtype: torch.dtype, zeros: torch.Tensor) -> None:
        self.group = form.group
        self.codes: list[torch.Tensor] = []  # [D] each
        self.scales: list[torch.Tensor] = []
        self._form, self._dtype, self._zeros = form, dtype, zeros

    def start(self, first: int, rows: torch.Tensor, diagonal: torch.Tensor) -> None:
        groups = rows.T.masked_fill(self._zeros[:, first : first + len(rows)], 0)
        self.scales.append(_searched_scales(groups, diagonal.reciprocal().square(), self._form, self._dtype))

    def rounded(self, index: int, weights: torch.Tensor) -> torch.Tensor:
        scale = self.scales[-1]
        codes = _codes(weights.masked_fill(self._zeros[:, index], 0), scale, self._form)
        self.codes.append(codes.to(torch.int8))
        return (codes.to(self._dtype) * scale).to(weights.dtype)


def _searched_scales(
    groups: torch.Tensor, importance: torch.Tensor, form: IntFormat, dtype: torch.dtype
) -> torch.Tensor:
    """[...] in `dtype`, of `groups` [..., g], with `importance` [..., g] or what broadcasts to it."""
    largest = groups.abs().amax(dim=-1) / (2 ** (form.bits - 1) - 0.5)
    best, least = torch.zeros_like(largest, dtype=dtype), torch.full_like(largest, torch.inf)
    for fraction in FRACTIONS:
        scales = (largest * fraction).to(dtype)
        restored = (_codes(groups, scales[..., None], form).to(dtype) * scales[..., None]).to(groups.dtype)
        errors = ((groups - restored).square() * importance).sum(dim=-1)
        better = errors < least
        best, least = torch.where(better, scales, best), torch.where(better, errors, least)
    return best


def _codes(weights: torch.Tensor, scales: torch.Tensor, form: IntFormat) -> torch.Tensor:
    wide = scales.to(weights.dtype)
    # A group of zeros, or of what vanishes in the scales' dtype, has scale 0 and codes 0.
    return (weights / torch.where(wide > 0, wide, 1.0)).round().clamp(form.least, form.greatest) * (wide > 0)
