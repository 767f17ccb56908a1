"""Sweeps over the projections that share inputs, damped by what is best on tokens that are held out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pruning.cutting.least_squares import downhill, output_size
from pruning.cutting.rewriting.column_sweep import inverse_factor
from pruning.forward.input_products import InputProducts

DAMPINGS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""What d is chosen from."""

_FIRST_TRIED = 2

UNCHOSEN = 0.1
"""d where no tokens are held out: set by hand, amid what is chosen from, and told (`unchosen`)."""

Sweep = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""New weights [D, A] of weights [D, A] and the factor U [A, A]."""


@dataclass(frozen=True, eq=False)
class Swept:
    """New weights [D, A] of each projection, the damping, and what is lost of the outputs on held-out tokens.

    `loss` is of weights that were made without those tokens; None where none were held out.
    """

    weights: tuple[torch.Tensor, ...]
    damping: float
    loss: float | None


def sweep_with_chosen_damping(weights: Sequence[torch.Tensor], products: InputProducts, sweep: Sweep) -> Swept:
    """What `sweep` makes of `weights` [D, A] with H of all tokens, damped by what was best without those held out."""
    held_out = products.held_out
    size = sum(output_size(weight, held_out) for weight in weights)
    if size <= 0 or products.fit_tokens == 0:
        return Swept(_swept(weights, products.fit + held_out, UNCHOSEN, sweep), UNCHOSEN, None)
    losses: dict[int, float] = {}

    def loss(index: int) -> float:
        if index not in losses:
            found = _swept(weights, products.fit, DAMPINGS[index], sweep)
            changes = (new.float() - old.float() for new, old in zip(found, weights, strict=True))
            losses[index] = sum(output_size(change, held_out) for change in changes)
        return losses[index]

    best = downhill(loss, len(DAMPINGS), _FIRST_TRIED)
    found = _swept(weights, products.fit + held_out, DAMPINGS[best], sweep)
    return Swept(found, DAMPINGS[best], loss(best) / size)


def few_tokens(notes: Mapping[str, Mapping[str, Any]]) -> tuple[int, int] | None:
    """Tokens, and the most inputs of a projection that was solved from fewer tokens than that; None: none was."""
    short = [note for note in notes.values() if "damping" in note and note["tokens"] < note["inputs"]]
    if not short:
        return None
    worst = max(short, key=lambda note: int(note["inputs"]))
    return int(worst["tokens"]), int(worst["inputs"])


def unchosen(notes: Mapping[str, Mapping[str, Any]]) -> int:
    """Of how many projections, by the notes on them, no damping could be chosen, so that it is `UNCHOSEN`."""
    return sum("damping" in note and note["lost_output"] is None for note in notes.values())


def _swept(
    weights: Sequence[torch.Tensor], products: torch.Tensor, damping: float, sweep: Sweep
) -> tuple[torch.Tensor, ...]:
    factor = inverse_factor(products, damping).float()
    return tuple(sweep(weight, factor) for weight in weights)
