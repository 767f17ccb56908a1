"""Tensors on their way from layer to layer: in memory up to a bound, beyond it in a temporary file."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import RawIOBase
from types import TracebackType
from typing import Any, Self, cast

import torch

from pruning.errors import InputError
from pruning.forward.spill_folder import spill_folder

DEFAULT_RESIDENT_BYTES = 2**30
"""Bytes of stored tensors that stay in memory: what 200 conversations of LLaVA-1.5-7B take in half precision."""


@dataclass(frozen=True, slots=True)
class _Slot:
    """Where one tensor is: in memory, or at `offset` of the file."""

    shape: torch.Size
    dtype: torch.dtype
    num_bytes: int
    held: torch.Tensor | None
    offset: int = 0


class TensorStore:
    """Keeps tensors until it is closed; the first `resident_bytes` of them in memory, all others in one file.

    The file lies in `spill_folder()` (TMPDIR says otherwise) and has no name, so that it is gone with the process,
    however that ends. What is stored is a copy on the CPU. Not thread-safe.
    """

    def __init__(self, resident_bytes: int = DEFAULT_RESIDENT_BYTES) -> None:
        self._free_bytes = resident_bytes
        self._slots: list[_Slot] = []
        self._folder = spill_folder()
        self._file: RawIOBase | None = None
        self._file_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forget all tensors and remove the file."""
        self._slots.clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def file_bytes(self) -> int:
        """How much is on disk."""
        return self._file_bytes

    def put(self, tensor: torch.Tensor) -> int:
        """Store `tensor`; returns the key to it. Raises InputError if the disk is full."""
        num_bytes = tensor.numel() * tensor.element_size()
        if num_bytes <= self._free_bytes:
            self._free_bytes -= num_bytes
            # A copy of its own: neither a view that keeps something larger alive, nor changed by what its owner does.
            held = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)
            self._slots.append(_Slot(tensor.shape, tensor.dtype, num_bytes, held))
        else:
            slot = _Slot(tensor.shape, tensor.dtype, num_bytes, None, self._file_bytes)
            self._write(slot, tensor)
            self._file_bytes += num_bytes
            self._slots.append(slot)
        return len(self._slots) - 1

    def replace(self, key: int, tensor: torch.Tensor) -> None:
        """Store `tensor` in the place of an earlier one of the same shape and dtype."""
        slot = self._slots[key]
        assert (slot.shape, slot.dtype) == (tensor.shape, tensor.dtype), (slot.shape, tensor.shape)
        if slot.held is not None:
            slot.held.copy_(tensor)
        else:
            self._write(slot, tensor)

    def get(self, key: int, device: torch.device) -> torch.Tensor:
        """The tensor on `device`; not to be written to."""
        slot = self._slots[key]
        if slot.held is not None:
            return slot.held.to(device)
        tensor = torch.empty(slot.shape, dtype=slot.dtype)
        target, done, file = _bytes_of(tensor), 0, self._opened(slot.offset)
        while done < slot.num_bytes:
            count = file.readinto(target[done:])
            assert count, "the temporary file is shorter than what was written to it"
            done += count
        return tensor.to(device)

    def _write(self, slot: _Slot, tensor: torch.Tensor) -> None:
        source, done = _bytes_of(tensor.detach().cpu().contiguous()), 0
        try:
            file = self._opened(slot.offset)
            while done < slot.num_bytes:
                done += file.write(source[done:]) or 0
        except OSError as error:
            raise InputError(
                "hidden states beyond the bound in memory must fit on the disk",
                values=f"{slot.offset + slot.num_bytes:,} bytes in {self._folder}: {error.strerror}",
                remedy="Let TMPDIR name a folder on a disk with more room, or use fewer conversations",
            ) from error

    def _opened(self, offset: int) -> RawIOBase:
        """The file, at `offset`."""
        if self._file is None:
            # Unbuffered: pieces are large, and a buffer would only copy them.
            self._file = cast(RawIOBase, tempfile.TemporaryFile(buffering=0, dir=self._folder))  # noqa: SIM115
        self._file.seek(offset)
        return self._file


def put_all(store: TensorStore, value: Any) -> Any:
    """`value` with every tensor inside its dicts, lists and tuples put into `store`; the inverse of `get_all`."""
    if isinstance(value, torch.Tensor):
        return _Stored(store.put(value))
    return _map(value, lambda inner: put_all(store, inner))


def get_all(store: TensorStore, value: Any, device: torch.device) -> Any:
    """What `put_all` was given, its tensors on `device`."""
    if isinstance(value, _Stored):
        return store.get(value.key, device)
    return _map(value, lambda inner: get_all(store, inner, device))


@dataclass(frozen=True, slots=True)
class _Stored:
    key: int


def _map(value: Any, function: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: function(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(function(inner) for inner in value)
    return value


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, shared with it."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
