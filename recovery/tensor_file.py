"""Tensors in a safetensors file that is seen whole or not at all, written without a copy of them in memory."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from pruning.atomic_file import replacing
from pruning.checkpoints.file_errors import os_error
from pruning.cutting.streaming.publish import sync


def replace_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write `tensors`, by their names, so that a reader sees the old file or the new one, also after a loss of power.

    Those on a CPU are written from where they lie; of others there is a copy in main memory meanwhile.

    Raises OSError.
    """
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as partial:
        try:
            save_file(ready, partial, metadata)
        except SafetensorError as error:
            found = os_error(error)
            if found is None:
                raise
            raise found from error
        sync(partial)
