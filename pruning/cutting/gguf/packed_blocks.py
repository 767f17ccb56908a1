"""Weights that the checkpoint holds in few bits, as llama.cpp's blocks: the same whole numbers and the same scales.

compressed-tensors' "pack-quantized" and q8_0 / q4_0 (ggml-common.h) say the same: a weight is d q, with q a whole
number of -128..127 or -8..7 and a scale d for every 32 inputs. So nothing is rounded anew, but for scales: blocks have
them in half precision. All of bfloat16's from 7.6e-6 to 65,504 are numbers of half precision; smaller ones, and most of
float32's, are rounded to it, which `scale_note` tells. Groups of 64 or 128 inputs are blocks with equal scales.

The order differs: 4-bit numbers lie two in a byte, q_0 and q_1 there, q_0 and q_16 of a block here.
"""

from collections.abc import Iterable, Iterator
from io import FileIO
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pruning.anatomy.dtypes import DTYPE_BYTES, decode
from pruning.anatomy.gguf_types import BLOCK, PACKED_TYPES
from pruning.checkpoints.blocks import open_weights, read_bytes, whole_blocks
from pruning.checkpoints.headers import StoredTensor
from pruning.checkpoints.packed_tensors import StoredPacked
from pruning.cutting.gguf.tensors import GgufTensor, rotary_rows, rows_at_once
from pruning.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_Bytes = npt.NDArray[np.uint8]


def check_quantisation(config: "PreTrainedConfig") -> None:
    """Raises UnsupportedModelError if the config says that weights are in a form that blocks cannot hold, or that more
    than weights is quantised."""
    for said in _said_of(config):
        if not _is_of_blocks(said):
            kind = said if not isinstance(said, dict) else said.get("format") or said.get("quant_method")
            raise UnsupportedModelError(
                "the checkpoint's weights must be plain numbers, or whole numbers with scales as `lop apply` and "
                "`lop quantise` write them",
                values=f"the config has a quantization_config of {kind}",
                remedy="Export the checkpoint that it was quantised from, with --quantise",
            )


def are_blocks(config: "PreTrainedConfig", weights: Iterable[StoredPacked]) -> bool:
    """Whether blocks can hold `weights`, which are in few bits as `config` says: whether they can be exported."""
    return all(map(_is_of_blocks, _said_of(config))) and all(weight.group % BLOCK == 0 for weight in weights)


def _said_of(config: "PreTrainedConfig") -> list[Any]:
    """What the sections of a config say of how weights are quantised; nothing of plain ones."""
    sections = (config, config.get_text_config(decoder=True))
    return [said for section in sections if (said := getattr(section, "quantization_config", None))]


def _is_of_blocks(said: Any) -> bool:
    """Whether it is compressed-tensors' of symmetric whole numbers, and no activation is rounded."""
    if not isinstance(said, dict):
        return False
    groups = (said.get("config_groups") or {}).values()
    others = ("kv_cache_scheme", "transform_config", "sparsity_config")
    return (
        (said.get("quant_method"), said.get("format")) == ("compressed-tensors", "pack-quantized")
        and not any(said.get(name) for name in others)
        and all(_is_scheme_of_blocks(group) for group in groups)
    )


def _is_scheme_of_blocks(group: Any) -> bool:
    weights = group.get("weights") if isinstance(group, dict) else None
    return (
        isinstance(weights, dict)
        and weights.get("type") == "int"
        and weights.get("symmetric") is True
        and weights.get("num_bits") in PACKED_TYPES
        and weights.get("strategy") in ("group", "channel")
        and not group.get("input_activations")
        and not group.get("output_activations")
    )


def scale_note(weights: Iterable[StoredPacked]) -> str | None:
    """What is to be said of scales that half precision does not hold; None: it holds all. All scales are read.

    Raises CheckpointError if a scale is not finite, past the range of half precision, or cannot be read.
    """
    count = changed = 0
    largest = 0.0
    for weight in weights:
        for block in whole_blocks(weight.scales):
            scales = decode(block, weight.scales.dtype).astype(np.float64)
            halves = _halves(scales).astype(np.float64)
            if not np.isfinite(halves).all():
                raise CheckpointError(
                    "scales of weights in few bits must fit half precision, which q8_0 and q4_0 have",
                    values=f"{np.abs(scales).max():g} in {weight.scales.name}",
                    remedy="Export the checkpoint that it was quantised from, as bf16 or f32",
                )
            differs = halves != scales
            count, changed = count + scales.size, changed + int(differs.sum())
            if differs.any():
                largest = max(largest, float(np.abs(halves[differs] / scales[differs] - 1.0).max()))
    if not changed:
        return None
    return (
        f"{changed:,} of {count:,} scales of weights in few bits are no numbers of half precision, which q8_0 and q4_0 "
        f"have: they are rounded to it, and change by up to {largest:.2%}"
    )


def packed_blocks(tensor: GgufTensor, weight: StoredPacked) -> Iterator[bytes]:
    """The data of `tensor`, whose source is `weight`, some rows at a time; checked before (`check_shape`, `copied`).

    Raises CheckpointError if the files cannot be read.
    """
    (rows, inputs), (outputs, own) = tensor.shape, weight.shape
    step = rows_at_once(own, tensor.rotary_dim)
    repeats = weight.group // BLOCK
    with open_weights(weight.codes.path) as of_codes, open_weights(weight.scales.path) as of_scales:
        for start in range(0, rows, step):
            codes = np.full((min(step, rows - start), inputs), 1 << (weight.bits - 1), dtype=np.uint8)
            scales = np.zeros((len(codes), inputs // BLOCK), dtype=np.float16)
            count = max(0, min(step, outputs - start))
            if count:
                found = _unpacked(_rows(of_codes, weight.codes, start, count), weight.bits)
                halves = _halves(decode(_rows(of_scales, weight.scales, start, count).reshape(-1), weight.scales.dtype))
                halves = halves.reshape(count, -1).repeat(repeats, axis=1)
                if tensor.rotary_dim:
                    found, halves = rotary_rows(found, tensor.rotary_dim), rotary_rows(halves, tensor.rotary_dim)
                codes[:count, :own], scales[:count, : own // BLOCK] = found, halves
            yield _encoded(codes, scales, weight.bits)


def _halves(scales: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float16]:
    with np.errstate(over="ignore"):  # `scale_note` looks at them
        return scales.astype(np.float16)


def _rows(file: FileIO, tensor: StoredTensor, start: int, count: int) -> _Bytes:
    """The bytes [count, ...] of rows of a matrix."""
    row_bytes = tensor.shape[1] * DTYPE_BYTES[tensor.dtype]
    return read_bytes(file, tensor.offset + start * row_bytes, count * row_bytes).reshape(count, row_bytes)


def _unpacked(packed: _Bytes, bits: int) -> _Bytes:
    """Whole numbers [n, A] above their least value, a byte each; of 4 bits, the first is the lower half of a byte."""
    return packed if bits == 8 else np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)


def _encoded(codes: _Bytes, scales: npt.NDArray[np.float16], bits: int) -> bytes:
    """Blocks of `codes` [n, A], whole numbers above their least value, and `scales` [n, A / 32]."""
    blocks = codes.reshape(*scales.shape, BLOCK)
    # Of 8 bits, what is above -128 becomes a signed byte.
    numbers = blocks ^ 128 if bits == 8 else blocks[..., : BLOCK // 2] | blocks[..., BLOCK // 2 :] << 4
    halves = scales.astype("<f2").view(np.uint8).reshape(*scales.shape, 2)
    return np.concatenate([halves, numbers], axis=-1).tobytes()
