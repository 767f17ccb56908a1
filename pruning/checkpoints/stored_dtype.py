"""In what type a checkpoint's weights are stored: what its files say, which need not be what config.json says.

Weights that were converted and saved with an old config are common. transformers loads them in the config's type: other
numbers than the files hold if that is a narrower one, and infinities where float16 has no room for a bfloat16. What is
measured, and what `lop apply` cuts, are the files' own values.
"""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pruning.anatomy.dtypes import FLOAT_DTYPES, torch_dtype
from pruning.anatomy.tensor_roles import decoder_tensor
from pruning.checkpoints.anatomy_reader import load_config
from pruning.checkpoints.headers import stored_tensors
from pruning.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def stored_dtype(folder: str | Path) -> torch.dtype:
    """The floating type of most bytes of the decoder layers in `folder`.

    Raises CheckpointError if the folder is damaged, or no decoder layer has floating-point tensors.
    """
    counted: Counter[str] = Counter()
    for name, tensor in stored_tensors(Path(folder)).items():
        if tensor.dtype in FLOAT_DTYPES and decoder_tensor(name):
            counted[tensor.dtype] += tensor.num_bytes
    if not counted:
        raise CheckpointError("a checkpoint's decoder layers hold floating-point tensors", values=str(folder))
    return torch_dtype(counted.most_common(1)[0][0])


def disagreement(folder: str | Path) -> str | None:
    """What to tell the user if config.json names another type than the files have; None if they agree.

    Raises CheckpointError if the folder is damaged.
    """
    stored, said = stored_dtype(folder), _said(load_config(Path(folder)))
    if said is None or said == stored:
        return None
    names = [str(x).removeprefix("torch.") for x in (said, stored)]
    return (
        f"{folder}: config.json says {names[0]}, but the weights are {names[1]}, in which they are measured and cut; "
        f"transformers and servers convert them: set dtype in config.json to {names[1]}"
    )


def _said(config: "PreTrainedConfig") -> torch.dtype | None:
    for part in (config.get_text_config(decoder=True), config):
        if isinstance(part.dtype, torch.dtype):
            return part.dtype
    return None
