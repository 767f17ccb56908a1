"""Answers drawn at random, each token as often as the model would say it, instead of the likeliest one each time."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pruning.errors import InputError

if TYPE_CHECKING:
    import torch


_LEAST, _MOST = 0.01, 100.0
"""Temperatures: beyond them, logits that are divided by one are out of range, or answers noise."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """How answers are drawn. What one is depends on `seed` and its name, not on those that share its batch.

    Attributes:
        temperature: logits are divided by it. 1: tokens come as often as the model has it; less: likely ones come more
            often.
        seed: another one draws other answers.

    Raises:
        InputError: no such temperature.
    """

    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not _LEAST <= self.temperature <= _MOST:
            raise InputError(
                f"the temperature of what is drawn is a number from {_LEAST:g} to {_MOST:g}",
                values=str(self.temperature),
                remedy="1 draws as the model would, the least nearly always the likeliest token",
            )

    def generator(self, name: str) -> "torch.Generator":
        """Random numbers of the answer that is called `name`."""
        import torch

        digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


def drawn_tokens(
    temperature: float, generators: "Sequence[torch.Generator]"
) -> "Callable[[Any, torch.Tensor], torch.Tensor]":
    """A logits processor of transformers after which the likeliest token of row i is one drawn with `generators`[i].

    So random decoding is greedy decoding of other scores [B, V], and torch's own random state has no say. A token takes
    one random number: the first token up to which the probabilities add up to more than that.
    """
    import torch

    def process(_tokens: Any, scores: "torch.Tensor") -> "torch.Tensor":
        # Of 150,000 probabilities a sum in float32 would lose the small ones; Apple's GPUs have nothing else.
        exact = torch.float32 if scores.device.type == "mps" else torch.float64
        sums = (scores.to(exact) / temperature).softmax(dim=-1).cumsum(dim=-1)
        # Drawn on the CPU, so that a GPU draws the same.
        drawn = torch.stack([torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators])
        total = sums[:, -1:].contiguous()
        below = torch.minimum(drawn.to(scores.device, exact) * total, torch.nextafter(total, torch.zeros_like(total)))
        tokens = torch.searchsorted(sums, below, right=True)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens, 0.0)

    return process
