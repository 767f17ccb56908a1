"""What enters the projections of one layer, summed up: squares for Wanda, products for what stands on H."""

from collections.abc import Iterable
from enum import IntEnum
from functools import partial
from typing import Any

import torch
from torch import nn

from pruning.cutting.rewriting.blocks import Block
from pruning.errors import CheckpointError
from pruning.forward.input_products import InputProducts


class Needs(IntEnum):
    """What has to be known of inputs."""

    NOTHING = 0
    SQUARES = 1
    PRODUCTS = 2


class Inputs:
    """Of one projection: `squares` [A] in float64, and `products` if they are needed."""

    def __init__(self, size: int, device: torch.device, needs: Needs) -> None:
        self._squares = torch.zeros(size, dtype=torch.float64, device=device)
        self.products = InputProducts.empty(size, device) if needs is Needs.PRODUCTS else None
        self.tokens = 0

    def add(self, rows: torch.Tensor, *, held_out: bool) -> None:
        """Take in tokens [N, A]."""
        self.tokens += len(rows)
        if self.products is not None:
            self.products.add(rows, held_out=held_out)
        else:
            self._squares += rows.float().square().sum(dim=0, dtype=torch.float64)

    @property
    def squares(self) -> torch.Tensor:
        if self.products is None:
            return self._squares
        return self.products.fit.diagonal().double() + self.products.held_out.diagonal().double()


class InputRecorder:
    """Hooks on a layer's projections that sum up every batch, for as long as the `with` block lasts.

    Every token counts, the first with its massive activations too; padding does not.
    """

    def __init__(self, layer: nn.Module, block: Block, needs: Needs) -> None:
        names = dict.fromkeys(x.shares for x in block.projections)
        self._block = block
        self._linears: dict[str, Any] = {name: layer.get_submodule(name) for name in names}
        self.inputs = {name: Inputs(x.in_features, x.weight.device, needs) for name, x in self._linears.items()}
        self._fit: torch.Tensor | None = None
        self._held_out: torch.Tensor | bool = False
        self._handles: list[Any] = []

    def start_batch(self, mask: torch.Tensor | None, held_out: torch.Tensor | bool) -> None:
        """Of the batch that comes next: which tokens are real [B, T] (None: all), and which rows [B] are held out."""
        if mask is None:
            self._fit, self._held_out = None, held_out
            return
        real = mask.bool()
        rows = torch.as_tensor(held_out).to(mask.device)
        rows = rows[:, None] if rows.ndim else rows
        self._fit, self._held_out = real & ~rows, real & rows

    def __enter__(self) -> "InputRecorder":
        for name, linear in self._linears.items():
            self._handles.append(linear.register_forward_pre_hook(partial(self._on_inputs, name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def check(self) -> None:
        """Raises CheckpointError that names layer and projection if inputs were not all finite, or there were none."""
        for name, inputs in self.inputs.items():
            if not bool(inputs.squares.isfinite().all()):
                raise CheckpointError(
                    "the inputs of projections must be finite numbers",
                    values=f"NaN or infinity enters {name} of {self._block}",
                    remedy="The model's activations overflow its dtype: save it as float32 or bfloat16",
                )

    def _on_inputs(self, name: str, _module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        own, x = self.inputs[name], args[0]
        if self._fit is None:
            own.add(x.flatten(0, -2), held_out=bool(self._held_out))
            return
        assert isinstance(self._held_out, torch.Tensor)
        own.add(x[self._fit], held_out=False)
        own.add(x[self._held_out], held_out=True)


def parameters_of(blocks: Iterable[Block]) -> int:
    """Weights of all projections together."""
    return sum(block.parameters for block in blocks)
