"""The ranking: for each layer the order in which FFN channels are kept, best first. A plan says how many.

Stored as a safetensors file with one int32 tensor `layers.{l}.ffn` [W] a layer; equal rankings are equal bytes, so
the file's sha256 names the ranking.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pruning.anatomy import ModelAnatomy
from pruning.errors import CheckpointError, FingerprintMismatchError


@dataclass(frozen=True)
class Ranking:
    """Channel orders, one int32 array [W] a layer: a permutation of 0..W-1, most important first."""

    ffn: tuple[NDArray[np.int32], ...]
    fingerprint: str

    @classmethod
    def from_scores(cls, anatomy: ModelAnatomy, scores: Sequence[NDArray[np.float64]]) -> "Ranking":
        """Order channels by descending score [L][W]; equal scores keep their position."""
        orders = tuple(np.argsort(-s, kind="stable").astype(np.int32) for s in scores)
        ranking = cls(orders, anatomy.fingerprint)
        ranking.check(anatomy)
        return ranking

    def check(self, anatomy: ModelAnatomy) -> None:
        """Raises FingerprintMismatchError or CheckpointError unless this ranking is whole and of that model."""
        if self.fingerprint != anatomy.fingerprint:
            raise FingerprintMismatchError(
                "a ranking fits only the model that it was computed on",
                values=f"ranking {self.fingerprint[:12]}, model {anatomy.fingerprint[:12]}",
            )
        widths = [x.ffn_width for x in anatomy.layers]
        if [len(order) for order in self.ffn] != widths or any(
            not np.array_equal(np.sort(order), np.arange(len(order))) for order in self.ffn
        ):
            raise CheckpointError("a ranking holds a permutation of the channels of every layer")

    def kept(self, layer: int, width: int) -> NDArray[np.int64]:
        """The `width` best channels of `layer`, in their original order."""
        return np.sort(self.ffn[layer][:width]).astype(np.int64)

    def to_bytes(self) -> bytes:
        """The safetensors file; equal rankings give equal bytes."""
        tensors = {f"layers.{i}.ffn": order for i, order in enumerate(self.ffn)}
        return bytes(save(tensors, metadata={"fingerprint": self.fingerprint}))

    @cached_property
    def sha256(self) -> str:
        """The digest that plans name the ranking by."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Ranking":
        """Parse a ranking file; raises CheckpointError if it is damaged or something else."""
        try:
            tensors = load(content)
            length = int.from_bytes(content[:8], "little")
            metadata = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
            orders = tuple(tensors[f"layers.{i}.ffn"].astype(np.int32) for i in range(len(tensors)))
            return cls(orders, metadata["fingerprint"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise CheckpointError("a ranking is a safetensors file of channel orders", values=str(error)) from error
