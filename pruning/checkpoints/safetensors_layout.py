"""How tensors lie in safetensors files: which file, in which order, after which header. No data is needed to know it.

The format: 8 bytes with the header's length, the header as JSON, the tensors' bytes one after the other
(https://github.com/huggingface/safetensors, "Format"). What is laid out here is what the format's own writer writes.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from pruning.anatomy.dtypes import DTYPE_BYTES
from pruning.anatomy.tensor_roles import TensorHeader

if TYPE_CHECKING:
    from huggingface_hub import StateDictSplit

MAX_SHARD_SIZE = 5 * 10**9
"""Bytes of tensors in one weight file: the hub's default, 5GB."""
SAFETENSORS_METADATA = {"format": "pt"}

# The writer fills a file by dtype in this order, then by name.
_DTYPE_ORDER = {
    dtype: place for place, dtype in enumerate(("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL"))
}


def tensor_bytes(shape: Sequence[int], dtype: str) -> int:
    """Bytes of one tensor."""
    return DTYPE_BYTES[dtype] * math.prod(shape)


def plan_shards(tensors: Sequence[TensorHeader], *, max_shard_size: int = MAX_SHARD_SIZE) -> "StateDictSplit":
    """Which file each tensor goes to, by the rule and the file names of the Hugging Face hub."""
    from huggingface_hub import split_state_dict_into_shards_factory

    return split_state_dict_into_shards_factory(
        {name: (shape, dtype) for name, shape, dtype in tensors},
        get_storage_size=lambda header: tensor_bytes(header[0], header[1]),
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )


@dataclass(frozen=True, slots=True)
class FileLayout:
    """One file: its tensors in their order, all bytes before the first one's data, and the size of the whole."""

    tensors: tuple[TensorHeader, ...]
    head: bytes
    file_bytes: int


def file_layout(tensors: Sequence[TensorHeader]) -> FileLayout:
    """How a file with these tensors is laid out; its header is compact JSON, padded with spaces to a multiple of 8."""
    ordered = tuple(sorted(tensors, key=lambda t: (_DTYPE_ORDER[t[2]], t[0])))
    # Every plan counts these bytes: to build a dictionary and have it written takes twice as long.
    entries = [f'"__metadata__":{json.dumps(SAFETENSORS_METADATA, separators=(",", ":"))}']
    offset = 0
    for name, shape, dtype in ordered:
        end = offset + tensor_bytes(shape, dtype)
        extents = ",".join(map(str, shape))
        entries.append(f'{_quoted(name)}:{{"dtype":"{dtype}","shape":[{extents}],"data_offsets":[{offset},{end}]}}')
        offset = end
    text = f"{{{','.join(entries)}}}".encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return FileLayout(ordered, head, len(head) + offset)


@lru_cache(maxsize=2**16)
def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


def safetensors_file_bytes(tensors: Sequence[TensorHeader]) -> int:
    """The size of a safetensors file with these tensors."""
    return file_layout(tensors).file_bytes
