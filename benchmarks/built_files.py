"""What the weight files of a model that was built take, without the planner's arithmetic.

Names are those that transformers saves a model of this kind under, shards are those that the hub's own function makes
of its tensors. A shard of the size of the reference is put through safetensors' own serializer, zeros for weights; one
of gigabytes is laid out by the format's description instead, which every small one is held against.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SERIALISED_BYTES = 64 * 2**20
"""Shards up to this size are serialised for real."""

SHARD_BYTES = 5_000_000_000
"""At most, in one file: what the hub and transformers call 5GB."""

_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}

METADATA = {"format": "pt"}
"""What transformers writes, and asks for when it loads."""


def file_bytes(model: "PreTrainedModel") -> int:
    """Bytes of the weight files of `model`, which may be on the meta device; tied weights are stored once.

    Raises ValueError if the serializer and the format's description disagree.
    """
    return sum(_shard_bytes(tensors) for tensors in _shards(model).values())


def write_hollow_files(model: "PreTrainedModel", folder: Path) -> None:
    """Weight files of `model` with their headers and their full length, but with holes for data: no disk is used.

    Whatever reads only headers takes them for a checkpoint.
    """
    shards = _shards(model)
    for file_name, tensors in shards.items():
        header = _header(tensors)
        with (folder / file_name).open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + sum(x.nbytes for x in tensors.values()))
    if len(shards) > 1:
        weight_map = {name: file_name for file_name, tensors in shards.items() for name in tensors}
        index = {"metadata": {"total_size": sum(x.nbytes for x in model.parameters())}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _shards(model: "PreTrainedModel") -> dict[str, dict[str, torch.Tensor]]:
    """By file name: the tensors in it by the names that they are saved under."""
    from transformers.core_model_loading import revert_weight_conversion

    found: dict[str, torch.Tensor] = revert_weight_conversion(model, dict(model.named_parameters()))
    saved = {name: found[name] for name in sorted(found)}  # `lop apply` fills files by name
    split = split_torch_state_dict_into_shards(
        saved, max_shard_size=SHARD_BYTES, filename_pattern="model{suffix}.safetensors"
    )
    return {file: {name: saved[name] for name in names} for file, names in split.filename_to_tensors.items()}


def _shard_bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    data = sum(x.nbytes for x in tensors.values())
    described = 8 + len(_header(tensors)) + data
    if data > SERIALISED_BYTES:
        return described
    zeros = {name: torch.zeros(x.shape, dtype=x.dtype, device="cpu") for name, x in tensors.items()}
    written = len(save(zeros, METADATA))
    if written != described:
        raise ValueError(f"safetensors writes {written} bytes, by the format's description there are {described}")
    return written


def _header(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """By https://github.com/huggingface/safetensors, "Format": JSON without spaces, filled up with spaces to a multiple
    of 8; tensors of wider elements come first, then by name. Its length goes before it in 8 bytes, the data behind it.
    """
    entries, offset = ['"__metadata__":{"format":"pt"}'], 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
        x = tensors[name]
        shape = ",".join(str(extent) for extent in x.shape)
        span = f"{offset},{offset + x.nbytes}"
        entries.append(f'"{name}":{{"dtype":"{_DTYPES[x.dtype]}","shape":[{shape}],"data_offsets":[{span}]}}')
        offset += x.nbytes
    header = ("{" + ",".join(entries) + "}").encode()
    return header + b" " * (-len(header) % 8)
