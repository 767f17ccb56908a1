"""Answers drawn at random, each token as often as the model would say it, instead of the likeliest one each time."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pruning.errors import InputError

if TYPE_CHECKING:
    import torch


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
        if not 0 < self.temperature < math.inf:
            raise InputError(
                "the temperature of drawn answers is a number above 0",
                values=str(self.temperature),
                remedy="1 draws as the model would; for the likeliest answers leave --samples out",
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

    The largest of logits / temperature + Gumbel noise is a draw from their softmax (the Gumbel-max trick; as in
    Maddison et al. 2014, arXiv 1411.0030). So random decoding is greedy decoding of other scores, and torch's own
    random state has no say.
    """
    import torch

    def process(_tokens: Any, scores: "torch.Tensor") -> "torch.Tensor":
        # On the CPU, so that a GPU draws the same; minus the logarithm of an exponential variable is a Gumbel one.
        rows = [torch.empty(scores.shape[1]).exponential_(generator=generator) for generator in generators]
        return scores.float() / temperature - torch.stack(rows).log().to(scores.device)

    return process
