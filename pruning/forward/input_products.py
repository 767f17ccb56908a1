"""H = sum over tokens of x x^T, x the inputs of a projection: what the second-order methods stand on.

Optimal brain surgeon (Hassibi and Stork, 1993), SparseGPT (arXiv 2301.00774), GPTQ (arXiv 2210.17323) and ZipLM
(arXiv 2302.04089) measure what a change of weights does to a projection's outputs, tr(dW H dW^T), so H is all that they
need to know of the data.

Every token counts alike, the first one too. It carries massive activations in many models, and with it left out, what
is solved from H ruins the output at that token: 3.1 nats instead of .6 on SmolLM2-135M, a fifth of its channels cut.

Sums are float32. A product of two activations is off by 6e-8 of its size, and what is solved from H is damped by a
thousandth of its diagonal at least, by which such errors vanish; float64 would take twice the memory, 970 MB for 11,008
channels, and half the speed. What is solved from it is solved in float64.

Letters: A inputs of the projection, B rows of a batch, T tokens of a row.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

import torch
from torch import nn

from pruning.anatomy.families import Family
from pruning.data.batches import Batch
from pruning.errors import CheckpointError, InputError

HELD_OUT_EVERY = 5
"""Of so many conversations, one is held out."""

_FIRST_HELD_OUT = 1
"""The second one: two conversations are enough for both parts."""


class InputRole(StrEnum):
    """Projections that share their inputs, and so their H."""

    FFN_OUT = "ffn-out"
    ATTENTION_OUT = "attention-out"
    FFN_IN = "ffn-in"
    ATTENTION_IN = "attention-in"

    def projection(self, family: Family) -> str:
        """One of them, by its name in a decoder layer: they all are called with the same inputs."""
        match self:
            case InputRole.FFN_OUT:
                return family.ffn_out
            case InputRole.ATTENTION_OUT:
                return family.attention_out
            case InputRole.FFN_IN:
                return family.ffn_in[0]
            case InputRole.ATTENTION_IN:
                return family.attention_in[0]


OUTPUT_ROLES = (InputRole.ATTENTION_OUT, InputRole.FFN_OUT)
"""Those whose inputs are units: what ranking by elimination and reconstruction need."""


@dataclass(eq=False)
class InputProducts:
    """H of one projection, of the tokens to fit on and of those held out: what is chosen is chosen on the latter.

    Attributes:
        fit, held_out: [A, A] float32, symmetric.
        fit_tokens, held_out_tokens: how many were summed up.
    """

    fit: torch.Tensor
    held_out: torch.Tensor
    fit_tokens: int = 0
    held_out_tokens: int = 0

    @classmethod
    def empty(cls, size: int, device: torch.device) -> "InputProducts":
        """Of no tokens, A = `size`."""
        return cls(torch.zeros(size, size, device=device), torch.zeros(size, size, device=device))

    def add(self, rows: torch.Tensor, *, held_out: bool) -> None:
        """Take in tokens [N, A]."""
        x = rows.float()
        (self.held_out if held_out else self.fit).addmm_(x.T, x)
        if held_out:
            self.held_out_tokens += len(x)
        else:
            self.fit_tokens += len(x)

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.fit_tokens + self.held_out_tokens

    def check(self, layer: int, projection: str) -> None:
        """Raises CheckpointError that names `projection` of `layer` if its inputs were not all finite."""
        if not all(bool(x.diagonal().isfinite().all()) for x in (self.fit, self.held_out)):
            raise CheckpointError(
                "the inputs of projections must be finite numbers",
                values=f"NaN or infinity enters {projection} of layer {layer}",
                remedy="The model's activations overflow its dtype: save it as float32 or bfloat16, then measure that",
            )


class HeldOut:
    """Batches as they are taken, and which of their rows are held out: every fifth conversation, with all its turns.

    Neighbouring tokens are alike, so only whole conversations can judge what others were fitted to.
    """

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = batches
        self._numbers: dict[str, int] = {}
        self.rows: list[torch.Tensor] = []
        """[B] of each batch that was taken, true for rows that are held out."""

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._batches:
            count = len(batch.inputs["attention_mask"])
            # Rows without a name are conversations of their own.
            ids = batch.ids or [f"{len(self.rows)}/{row}" for row in range(count)]
            numbers = [self._numbers.setdefault(name, len(self._numbers)) for name in ids]
            self.rows.append(torch.tensor([number % HELD_OUT_EVERY == _FIRST_HELD_OUT for number in numbers]))
            yield batch

    def check(self) -> None:
        """Raises InputError if what was taken has no two parts."""
        if len(self._numbers) <= _FIRST_HELD_OUT:
            raise InputError(
                "second-order statistics need two conversations, one of which is held out",
                values=f"{len(self._numbers)}",
                remedy="Use more calibration data: some hundred conversations",
            )


class ProductRecorder:
    """Hooks on projections of one decoder layer that sum up every batch, for as long as the `with` block lasts."""

    def __init__(
        self, layer: nn.Module, projections: Mapping[InputRole, str], held_out: Sequence[torch.Tensor]
    ) -> None:
        self._linears: dict[InputRole, Any] = {role: layer.get_submodule(x) for role, x in projections.items()}
        self._held_out = iter(held_out)
        self._fit_tokens, self._held_out_tokens = torch.empty(0), torch.empty(0)  # [B, T], true where they are
        self.products = {role: InputProducts.empty(x.in_features, x.weight.device) for role, x in self._linears.items()}
        self._handles: list[Any] = []

    def start_batch(self, mask: torch.Tensor) -> None:
        """The mask [B, T] of the batch that comes next, 1 for real tokens; batches come in order."""
        real, held_out = mask.bool(), next(self._held_out).to(mask.device)[:, None]
        self._fit_tokens, self._held_out_tokens = real & ~held_out, real & held_out

    def __enter__(self) -> "ProductRecorder":
        for role, linear in self._linears.items():
            self._handles.append(linear.register_forward_pre_hook(partial(self._on_inputs, role)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _on_inputs(self, role: InputRole, _module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self.products[role].add(args[0][self._fit_tokens], held_out=False)
        self.products[role].add(args[0][self._held_out_tokens], held_out=True)
