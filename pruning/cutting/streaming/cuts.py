"""A stored tensor of which some is kept: the output that is a copy of bytes."""

from collections.abc import Iterator
from dataclasses import dataclass

from pruning.anatomy.tensor_roles import TensorHeader
from pruning.arrays import IntArray
from pruning.checkpoints.blocks import BLOCK_BYTES, Bytes, cut_blocks, whole_blocks
from pruning.checkpoints.headers import StoredTensor


@dataclass(frozen=True, slots=True)
class TensorCut:
    """A stored tensor of which `kept`, ascending, stays along `axis`; all of it if `axis` is None."""

    header: TensorHeader
    source: StoredTensor
    axis: int | None = None
    kept: IntArray | None = None

    def blocks(self, block_bytes: int = BLOCK_BYTES) -> Iterator[Bytes]:
        """Its bytes, in order. Raises CheckpointError if the source cannot be read."""
        if self.axis is None or self.kept is None:
            return whole_blocks(self.source, block_bytes=block_bytes)
        return cut_blocks(self.source, self.axis, self.kept, block_bytes=block_bytes)
