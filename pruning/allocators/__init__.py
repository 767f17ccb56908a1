"""Allocators: rules that turn a budget into per-layer widths without a search. One file each, listed here by name."""

from collections.abc import Callable
from dataclasses import dataclass

from pruning.allocators.additive_dp import additive_dp, fill_up
from pruning.allocators.problem import AllocationProblem
from pruning.allocators.uniform import uniform_widths
from pruning.errors import InputError, NotFoundError

__all__ = ["ALLOCATORS", "AllocationProblem", "Allocator", "get_allocator"]


@dataclass(frozen=True, slots=True)
class Allocator:
    """A named allocator: `allocate` returns FFN widths [L] that cost at most the problem's budget."""

    name: str
    description: str
    needs_sensitivity: bool
    allocate: Callable[[AllocationProblem], list[int]]


def _uniform(problem: AllocationProblem) -> list[int]:
    return uniform_widths(problem.anatomy, problem.budget, round_to=problem.grid.round_to)


def _additive_dp(problem: AllocationProblem) -> list[int]:
    if problem.sensitivity is None:
        raise InputError("allocator 'additive-dp' needs the one-layer sensitivities", remedy="Run `lop search` first")
    configuration, _ = additive_dp(problem.grid, problem.sensitivity, problem.budget)
    return problem.grid.widths_of(fill_up(problem.grid, configuration, problem.budget, problem.sensitivity))


ALLOCATORS: dict[str, Allocator] = {
    allocator.name: allocator
    for allocator in (
        Allocator("uniform", "the same retention in every layer", False, _uniform),
        Allocator("additive-dp", "exact optimum of summed one-layer sensitivities (SPDY)", True, _additive_dp),
    )
}


def get_allocator(name: str) -> Allocator:
    """The allocator called `name`; raises NotFoundError that lists the names there are."""
    try:
        return ALLOCATORS[name]
    except KeyError:
        raise NotFoundError(
            "no allocator has this name", values=repr(name), remedy=f"Choose one of {', '.join(ALLOCATORS)}"
        ) from None
