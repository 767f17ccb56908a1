"""Whether a checkpoint's own weights are numbers: looked at where something that was computed from them is not."""

from pathlib import Path

import numpy as np

from pruning.checkpoints.blocks import whole_blocks
from pruning.checkpoints.headers import StoredTensor, stored_tensors
from pruning.errors import CheckpointError

# A number is NaN or infinite where all bits of its exponent are set: no dtype needs a library then.
_EXPONENTS = {
    "F64": (np.uint64, 0x7FF0000000000000),
    "F32": (np.uint32, 0x7F800000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}


def check_finite_weights(folder: str | Path) -> None:
    """Reads every weight; raises CheckpointError that names the tensors with NaN or infinity, if there are any."""
    stored = stored_tensors(Path(folder))
    broken = sorted(name for name, tensor in stored.items() if not _is_finite(tensor))
    if broken:
        raise CheckpointError(
            "every weight of a checkpoint must be a finite number",
            values=f"{folder}: NaN or infinity in {len(broken)} of {len(stored)} tensors, first {broken[0]} "
            f"in {stored[broken[0]].path.name}",
            remedy="Measuring again does not help: save or download the checkpoint again, from before a training that "
            "diverged or a conversion to a narrower dtype",
        )


def _is_finite(tensor: StoredTensor) -> bool:
    if tensor.dtype not in _EXPONENTS:
        return True
    kind, exponent = _EXPONENTS[tensor.dtype]
    mask = kind(exponent)
    return not any(((block.view(kind) & mask) == mask).any() for block in whole_blocks(tensor))
