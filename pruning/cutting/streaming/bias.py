"""The bias that stands in for removed channels, computed from files: the one output that is not a copy of bytes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import FileIO
from typing import TYPE_CHECKING

from pruning.anatomy.dtypes import DTYPE_BYTES, torch_dtype
from pruning.anatomy.tensor_roles import TensorHeader
from pruning.checkpoints.blocks import Bytes, open_weights, read_bytes
from pruning.checkpoints.headers import StoredTensor
from pruning.forward.compensation import BIAS_ROWS, check_finite_bias, compensated_bias_rows
from pruning.planning.ranking import Ranking

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class CompensatedBias:
    """The bias [D] of the down projection `weight` [D, W] when it keeps `width` channels; `bias` is what it had."""

    header: TensorHeader
    weight: StoredTensor
    bias: StoredTensor | None
    ranking: Ranking
    layer: int
    width: int

    def blocks(self, block_bytes: int = 0) -> Iterator[Bytes]:  # noqa: ARG002
        """Its bytes, in order: the bits that `pruning.forward.compensation` computes for a model in memory.

        Blocks have BIAS_ROWS elements, whatever `block_bytes` says. Raises CheckpointError if the source cannot be
        read, or a value does not fit its dtype.
        """
        import torch

        rows, width = self.weight.shape
        with open_weights(self.weight.path) as file:
            for first in range(0, rows, BIAS_ROWS):
                count = min(BIAS_ROWS, rows - first)
                weight = _values(file, self.weight, first * width, count * width).view(count, width)
                bias = None if self.bias is None else self._own(first, count)
                found = compensated_bias_rows(weight, bias, self.ranking, self.layer, self.width)
                check_finite_bias(found, self.layer)
                content: Bytes = found.to(torch_dtype(self.header[2])).view(torch.uint8).numpy()
                yield content

    def _own(self, first: int, count: int) -> "torch.Tensor":
        assert self.bias is not None
        with open_weights(self.bias.path) as file:
            return _values(file, self.bias, first, count)


def check_biases(outputs: Iterable[object]) -> None:
    """Computes those of the outputs that are biases in half precision, only to see that their values fit.

    The other dtypes have the range of float32, past which no weight and mean lead, and are not worth reading weights
    twice. Raises CheckpointError as `CompensatedBias.blocks`.
    """
    for output in outputs:
        if isinstance(output, CompensatedBias) and output.header[2] == "F16":
            for _ in output.blocks():
                pass


def _values(file: FileIO, tensor: StoredTensor, first: int, count: int) -> "torch.Tensor":
    """`count` values of `tensor` from the `first`, one-dimensional."""
    import torch

    size = DTYPE_BYTES[tensor.dtype]
    content = read_bytes(file, tensor.offset + first * size, count * size)
    return torch.from_numpy(content).view(torch_dtype(tensor.dtype))
