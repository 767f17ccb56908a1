"""Batches whose pictures are made again when they are needed: those of a large part would fill the memory."""

from collections.abc import Callable, ItemsView, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from pruning.data.batches import Batch

if TYPE_CHECKING:
    import torch

_IDS = "input_ids"


class RemadeInputs(Mapping[str, "torch.Tensor"]):
    """A batch's inputs: what has the shape of its texts [B, T] is held, the rest made again whenever asked for."""

    def __init__(self, inputs: "Mapping[str, torch.Tensor]", again: Callable[[], Batch]) -> None:
        self._names, self._again = tuple(inputs), again
        self._held = {name: value for name, value in inputs.items() if value.shape == inputs[_IDS].shape}

    def __getitem__(self, name: str) -> "torch.Tensor":
        if name in self._held or name not in self._names:
            return self._held[name]
        return self._again().inputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def items(self) -> "ItemsView[str, torch.Tensor]":
        """All of them, made once."""
        return self._again().inputs.items()


class PictureRoom:
    """Lets batches keep what they hold of pictures as long as that takes `most_bytes` together."""

    def __init__(self, most_bytes: int) -> None:
        self._room = most_bytes

    def held(self, batch: Batch, again: Callable[[], Batch]) -> Batch:
        """The batch itself, or, where there is no room left, one whose pictures `again` makes: of equal bytes."""
        texts = batch.inputs[_IDS].shape
        size = sum(x.numel() * x.element_size() for x in batch.inputs.values() if x.shape != texts)
        if size <= self._room:
            self._room -= size
            return batch
        return replace(batch, inputs=RemadeInputs(batch.inputs, again))
