"""The eyes of a Qwen2-VL or Qwen2.5-VL: rotary positions, four neighbouring patches merged into a token, two layers.

mtmd computes tools/mtmd/models/qwen2vl.cpp: a still picture is two equal frames, so the patch embedding is written as
one convolution a frame; queries, keys and values, fused in the checkpoint, as three tensors. Of Qwen2.5-VL most blocks
attend inside windows of 112 pixels, and every n-th to the whole picture.
"""

import re
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pruning.anatomy.dtypes import DTYPE_BYTES
from pruning.anatomy.gguf_types import StoredType, TensorType, stored_type
from pruning.checkpoints.headers import StoredTensor
from pruning.cutting.gguf.tensors import GgufTensor, Stored
from pruning.cutting.gguf.vision_parts import Named, Tower, VisionPart, image_processor, normalisation
from pruning.cutting.gguf.writer import Value
from pruning.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_TOWER = re.compile(r"^(?:.*\.)?visual\.(.+)$")

EPSILON = 1e-6
"""Of the tower's norms, in transformers' code for both families."""
WINDOW_PIXELS = 112
"""Side of Qwen2.5-VL's windows, in mtmd's code."""
FEWEST_TOKENS, MOST_TOKENS = 8, 4096
"""What mtmd resizes a picture to, unless it is told otherwise."""
MERGED = 2
"""Patches a side that become one token, in mtmd's code."""
FRAMES = 2

_NORMS = {"norm1": ("ln1", "norm"), "norm2": ("ln2", "norm"), "attn.proj": ("attn_out", "square")}
_MODULES = {
    "qwen2_vl": _NORMS | {"mlp.fc1": ("ffn_up", "up"), "mlp.fc2": ("ffn_down", "down")},
    "qwen2_5_vl": _NORMS
    | {"mlp.gate_proj": ("ffn_gate", "up"), "mlp.up_proj": ("ffn_up", "up"), "mlp.down_proj": ("ffn_down", "down")},
}
"""By family: a block's modules -> clip.cpp's name, and the kind for `Tower.block_shapes`."""


def qwen2vl_vision(folder: Path, config: "PreTrainedConfig", stored: Stored, wanted: TensorType) -> VisionPart:
    """The tower and merger of the checkpoint in `folder`, of `model_type` qwen2_vl or qwen2_5_vl.

    Raises:
        UnsupportedModelError: mtmd would not compute this tower, or treat pictures otherwise.
        CheckpointError: tensors or the image processor are missing, or not those of the config.
    """
    family, vision = config.model_type, config.vision_config
    text_width = int(config.get_text_config(decoder=True).hidden_size)
    sizes = _sizes(family, vision)
    sizes.check(int(vision.in_channels), MERGED)
    windows = _check_representable(family, vision)
    tower = Named({match[1]: name for name in stored if (match := _TOWER.match(name))}, stored)
    tensors = frame_embeddings(tower, sizes)
    modules = _MODULES[family]
    names = {f"{x}.{kind}": f"{name}.{kind}" for x, (name, _) in modules.items() for kind in ("weight", "bias")}
    shapes = sizes.block_shapes({x: kind for x, (_, kind) in modules.items()})
    if family == "qwen2_5_vl":  # its norms have no biases
        shapes = {x: shape for x, shape in shapes.items() if x not in ("norm1.bias", "norm2.bias")}
    fused = {x: name for x, name in tower.names.items() if ".attn.qkv." in x}
    rest = Named({x: name for x, name in tower.names.items() if x not in fused}, stored)
    tensors += rest.blocks("blocks", names, shapes, sizes.blocks, wanted)
    for index in range(sizes.blocks):
        tensors += _queries_keys_values(Named(fused, stored), index, sizes.width, wanted)
    inside = sizes.width * MERGED**2
    merger = {
        "v.post_ln.weight": ("merger.ln_q.weight", (sizes.width,)),
        **({"v.post_ln.bias": ("merger.ln_q.bias", (sizes.width,))} if family == "qwen2_vl" else {}),
        "mm.0.weight": ("merger.mlp.0.weight", (inside, inside)),
        "mm.0.bias": ("merger.mlp.0.bias", (inside,)),
        "mm.2.weight": ("merger.mlp.2.weight", (text_width, inside)),
        "mm.2.bias": ("merger.mlp.2.bias", (text_width,)),
    }
    tensors += [tower.tensor(name, x, shape, wanted) for name, (x, shape) in merger.items()]
    projector = {"qwen2_vl": "qwen2vl_merger", "qwen2_5_vl": "qwen2.5vl_merger"}[family]
    images, notes = picture_keys(folder, sizes)
    metadata = {**sizes.metadata(projector, text_width), **windows, **images}
    return VisionPart(metadata, tuple(tensors), notes)


def _sizes(family: str, vision: Any) -> Tower:
    """The config's names differ between the two."""
    width = int(vision.embed_dim if family == "qwen2_vl" else vision.hidden_size)
    ffn = int(width * vision.mlp_ratio) if family == "qwen2_vl" else int(vision.intermediate_size)
    patch = int(vision.patch_size)
    # Pictures have the size that they have; clip.cpp wants a number here, and reads positions from none.
    side = 40 * patch
    heads, blocks = int(vision.num_heads), int(vision.depth)
    return Tower(width, ffn, heads, blocks, side, patch, EPSILON, str(vision.hidden_act))


def _check_representable(family: str, vision: Any) -> dict[str, Value]:
    """The keys of windowed attention; raises UnsupportedModelError if mtmd's graph is not this model's."""
    check_patches(vision)
    if family == "qwen2_vl":
        return {}
    whole, count = [int(x) for x in vision.fullatt_block_indexes], int(vision.depth)
    every = whole[0] + 1 if whole else 0
    if not every or whole != list(range(every - 1, count, every)) or int(vision.window_size) != WINDOW_PIXELS:
        raise UnsupportedModelError(
            f"every n-th block must attend to the whole picture, the others inside windows of {WINDOW_PIXELS} pixels",
            values=f"fullatt_block_indexes={whole} of {count} blocks, window_size={vision.window_size}",
        )
    return {"clip.vision.n_wa_pattern": every}


def check_patches(vision: Any) -> None:
    """Raises UnsupportedModelError if mtmd merges patches otherwise."""
    merged, frames = vision.spatial_merge_size, vision.temporal_patch_size
    if (merged, frames) != (MERGED, FRAMES):
        raise UnsupportedModelError(
            "patches must be merged two by two, and of two frames",
            values=f"spatial_merge_size={merged}, temporal_patch_size={frames}",
        )


def frame_embeddings(tower: Named, sizes: Tower) -> list[GgufTensor]:
    """The convolution of each frame, of [width, 3, frames, patch, patch]."""
    shape = (sizes.width, 3, FRAMES, sizes.patch, sizes.patch)
    source = tower.known("patch_embed.proj.weight", shape)
    whole = np.concatenate(list(GgufTensor("", shape, StoredType.F32, source).blocks()))
    of_frame = (sizes.width, 3, sizes.patch, sizes.patch)
    return [
        GgufTensor(name, of_frame, StoredType.F32, values=np.ascontiguousarray(whole[:, :, frame]))
        for frame, name in enumerate(("v.patch_embd.weight", "v.patch_embd.weight.1"))
    ]


def _queries_keys_values(fused: Named, index: int, width: int, wanted: TensorType) -> list[GgufTensor]:
    """The three thirds of a block's fused projection."""
    found = []
    for kind, shape in (("weight", (width, width)), ("bias", (width,))):
        whole = fused.known(f"blocks.{index}.attn.qkv.{kind}", (3 * width, *shape[1:]))
        for place, name in enumerate(("attn_q", "attn_k", "attn_v")):
            third = _rows(whole, place * width, width)
            found.append(GgufTensor(f"v.blk.{index}.{name}.{kind}", shape, stored_type(shape, wanted), third))
    return found


def _rows(tensor: StoredTensor, start: int, count: int) -> StoredTensor:
    """`count` rows of a tensor of the checkpoint, from the row `start` on."""
    row_bytes = prod(tensor.shape[1:]) * DTYPE_BYTES[tensor.dtype]
    return replace(tensor, shape=(count, *tensor.shape[1:]), offset=tensor.offset + start * row_bytes)


def picture_keys(folder: Path, sizes: Tower) -> tuple[dict[str, Value], tuple[str, ...]]:
    """How pixels are scaled, and how large pictures are here and there."""
    images = image_processor(folder, "patch_size", "merge_size")
    if (int(images.patch_size), int(images.merge_size)) != (sizes.patch, MERGED):
        raise UnsupportedModelError(
            "the image processor must cut the tower's patches",
            values=f"patch_size={images.patch_size}, merge_size={images.merge_size}; the tower's: {sizes.patch}, 2",
        )
    size, token = dict(images.size), (sizes.patch * MERGED) ** 2
    fewest, most = int(size["shortest_edge"]) // token, int(size["longest_edge"]) // token
    if (fewest, most) == (FEWEST_TOKENS, MOST_TOKENS):
        return normalisation(images), ()
    note = (
        f"llama.cpp gives a picture {FEWEST_TOKENS} to {MOST_TOKENS:,} tokens, this folder's image processor "
        f"{fewest:,} to {most:,}: run it with --image-min-tokens {max(fewest, 1)} --image-max-tokens {most}"
    )
    return normalisation(images), (note,)
