"""The ranking: for each layer the order in which FFN channels are kept, best first. A plan says how many.

Stored as a safetensors file with one int32 tensor `layers.{l}.ffn` [W] a layer; equal rankings are equal bytes, so
the file's sha256 names the ranking. A ranking whose plans compensate for what they remove (see `pruning.compensation`)
has a float32 tensor `layers.{l}.ffn_mean` [W] a layer beside it.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pruning.anatomy import ModelAnatomy
from pruning.errors import CheckpointError, FingerprintMismatchError


@dataclass(frozen=True)
class Ranking:
    """Which channels go first.

    Attributes:
        ffn: channel orders, one [W] a layer: a permutation of 0..W-1, most important first.
        fingerprint: of the dense model.
        ffn_means: each channel's mean on calibration data, one [W] a layer. With them, a down projection that is cut
            gets the bias W_down[:, removed] @ mean[removed]; without them (None), it gets none.
    """

    ffn: tuple[NDArray[np.int32], ...]
    fingerprint: str
    ffn_means: tuple[NDArray[np.float32], ...] | None = None

    @classmethod
    def from_scores(
        cls,
        anatomy: ModelAnatomy,
        scores: Sequence[NDArray[np.float64]],
        *,
        means: Sequence[NDArray[np.float64]] | None = None,
    ) -> "Ranking":
        """Order channels by descending score [L][W]; equal scores keep their position. `means` [L][W] to compensate."""
        orders = tuple(np.argsort(-s, kind="stable").astype(np.int32) for s in scores)
        ffn_means = None if means is None else tuple(x.astype(np.float32) for x in means)
        ranking = cls(orders, anatomy.fingerprint, ffn_means)
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
        if self.ffn_means is not None and (
            [x.shape for x in self.ffn_means] != [(w,) for w in widths]
            or not all(np.isfinite(x).all() for x in self.ffn_means)
        ):
            raise CheckpointError("a ranking that compensates holds a finite mean for every channel of every layer")

    @property
    def compensates(self) -> bool:
        """Whether plans with this ranking add biases for what they remove."""
        return self.ffn_means is not None

    def kept(self, layer: int, width: int) -> NDArray[np.int64]:
        """The `width` best channels of `layer`, in their original order."""
        return np.sort(self.ffn[layer][:width]).astype(np.int64)

    def removed(self, layer: int, width: int) -> NDArray[np.int64]:
        """All channels of `layer` but the `width` best, in their original order."""
        return np.sort(self.ffn[layer][width:]).astype(np.int64)

    def to_bytes(self) -> bytes:
        """The safetensors file; equal rankings give equal bytes."""
        tensors: dict[str, NDArray[Any]] = {f"layers.{i}.ffn": order for i, order in enumerate(self.ffn)}
        tensors |= {f"layers.{i}.ffn_mean": means for i, means in enumerate(self.ffn_means or ())}
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
            means = {name: x.astype(np.float32) for name, x in tensors.items() if name.endswith("_mean")}
            layers = range(len(tensors) - len(means))
            orders = tuple(tensors[f"layers.{i}.ffn"].astype(np.int32) for i in layers)
            ffn_means = tuple(means[f"layers.{i}.ffn_mean"] for i in layers) if means else None
            return cls(orders, metadata["fingerprint"], ffn_means)
        except (SafetensorError, KeyError, ValueError) as error:
            raise CheckpointError("a ranking is a safetensors file of channel orders", values=str(error)) from error
