"""Weights in few bits, computed from files: codes, scales and shape in the place of a weight that is kept or cut.

Rounded to nearest with searched scales, some rows at a time: memory depends on the inputs of a projection alone, and no
row depends on another.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from pruning.anatomy.dtypes import DTYPE_BYTES, torch_dtype
from pruning.anatomy.packed_weights import GROUP
from pruning.anatomy.tensor_roles import TensorHeader
from pruning.checkpoints.blocks import BLOCK_BYTES, Bytes
from pruning.cutting.streaming.cuts import TensorCut

ROWS = 256
"""Of a weight that are rounded at once."""


class PackedPart(StrEnum):
    """The tensors of a packed weight, by the ends of their names."""

    CODES = "packed"
    SCALES = "scale"
    SHAPE = "shape"


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """One `part` of `weight` [D, A] in `bits`."""

    header: TensorHeader
    weight: TensorCut
    bits: int
    part: PackedPart

    def blocks(self, block_bytes: int = BLOCK_BYTES) -> Iterator[Bytes]:
        """Its bytes, in order: ROWS rows of the weight at a time. Raises CheckpointError if the source cannot be read,
        or a scale does not fit its dtype."""
        if self.part is PackedPart.SHAPE:
            yield np.array(self.weight.header[1], dtype="<i8").view(np.uint8)
            return
        import torch

        from pruning.cutting.made_weights import check_made_weight
        from pruning.cutting.rewriting.quantisation import IntFormat, round_to_nearest

        _, inputs, dtype = self.weight.header[1][0], self.weight.header[1][1], self.weight.header[2]
        form = IntFormat(self.bits, GROUP)
        for content in _runs(self.weight.blocks(block_bytes), ROWS * inputs * DTYPE_BYTES[dtype]):
            rows = torch.from_numpy(content).view(torch_dtype(dtype)).view(-1, inputs)
            made = round_to_nearest(rows, form, None, torch_dtype(dtype))
            check_made_weight(made.scales, self.header[0])
            if self.part is PackedPart.SCALES:
                found: Bytes = made.scales.contiguous().view(torch.uint8).numpy().reshape(-1)
            else:
                found = _packed(made.codes.numpy(), self.bits)
            yield found


def packed_tensors(weight: TensorCut, headers: list[TensorHeader], bits: int) -> dict[str, PackedTensor]:
    """By name, what stands in the place of `weight`."""
    parts = {header[0]: PackedPart(header[0].rpartition("_")[2]) for header in headers}
    return {header[0]: PackedTensor(header, weight, bits, parts[header[0]]) for header in headers}


def _packed(codes: "np.ndarray[tuple[int, ...], np.dtype[np.int8]]", bits: int) -> Bytes:
    """The bytes of int32 words, little-endian, into which `codes` [n, A] go, the first one lowest, each above its least
    value: 0 is the least code, as in compressed-tensors."""
    above = (codes.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
    if bits == 8:
        return above.reshape(-1)
    pairs = above.reshape(-1, 2)
    found: Bytes = (pairs[:, 0] | (pairs[:, 1] << 4)).astype(np.uint8)
    return found


def _runs(blocks: Iterator[Bytes], size: int) -> Iterator[Bytes]:
    """The bytes of `blocks` in runs of `size`, the last one shorter."""
    waiting: list[Bytes] = []
    count = 0
    for block in blocks:
        waiting.append(block)
        count += len(block)
        if count >= size:
            joined = np.concatenate(waiting)
            whole = count // size * size
            for start in range(0, whole, size):
                yield joined[start : start + size].copy()
            waiting, count = [joined[whole:]], count - whole
    if count:
        yield np.concatenate(waiting)
