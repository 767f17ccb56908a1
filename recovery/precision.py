"""In what numbers passes are computed: float32 on a CPU; on a GPU products are bfloat16, sums of them float32.

Student and dense model are passed through alike, to train and to judge, or a model would be told from its own rounding.
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from pruning.anatomy.decoder_view import DecoderView
from pruning.checkpoints.stored_dtype import stored_dtype


def is_mixed(device: torch.device) -> bool:
    """Whether products on `device` are bfloat16."""
    return device.type == "cuda"


def product_precision(device: torch.device) -> AbstractContextManager[object]:
    """The block's products on `device` are computed so. Weights that are trained stay float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if is_mixed(device) else nullcontext()


def logits_of(view: DecoderView, hidden: torch.Tensor) -> torch.Tensor:
    """Logits [..., V] of final hidden states [..., D], in float32; only their products are in fewer bits."""
    with product_precision(hidden.device):
        return view.logits(hidden)


def dense_dtype(folder: Path, device: torch.device) -> torch.dtype:
    """What the dense model in `folder`, which is not trained, is held in.

    Raises CheckpointError if the folder is damaged.
    """
    return stored_dtype(folder) if is_mixed(device) else torch.float32
