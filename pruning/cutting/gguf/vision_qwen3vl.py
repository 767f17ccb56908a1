"""The eyes of a Qwen3-VL: as Qwen2-VL's, with learned positions, and features of several blocks (DeepStack).

mtmd computes tools/mtmd/models/qwen3vl.cpp: position embeddings are stretched to the picture's grid of patches, and
what further mergers make of some blocks is put behind the features of a token; the first decoder layers add it
(arXiv 2406.04334).
"""

import re
from collections.abc import Sequence
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.anatomy.gguf_types import TensorType
from pruning.cutting.gguf.tensors import GgufTensor, Stored
from pruning.cutting.gguf.vision_parts import POSITIONS, Named, Tower, VisionPart
from pruning.cutting.gguf.vision_qwen2vl import (
    EPSILON,
    MERGED,
    check_patches,
    frame_embeddings,
    picture_keys,
)
from pruning.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_TOWER = re.compile(r"^(?:.*\.)?visual\.(.+)$")
_MODULES = {
    "norm1": ("ln1", "norm"),
    "norm2": ("ln2", "norm"),
    "attn.proj": ("attn_out", "square"),
    "mlp.linear_fc1": ("ffn_up", "up"),
    "mlp.linear_fc2": ("ffn_down", "down"),
}
_FUSED = "attn.qkv"
_NAMES = {
    f"{inside}.{kind}": f"{name}.{kind}"
    for inside, name in {**{x: name for x, (name, _) in _MODULES.items()}, _FUSED: "attn_qkv"}.items()
    for kind in ("weight", "bias")
}


def qwen3vl_vision(folder: Path, config: "PreTrainedConfig", stored: Stored, wanted: TensorType) -> VisionPart:
    """The tower and mergers of the checkpoint in `folder`, of `model_type` qwen3_vl.

    Raises:
        UnsupportedModelError: mtmd would not compute this tower, or treat pictures otherwise.
        CheckpointError: tensors or the image processor are missing, or not those of the config.
    """
    vision = config.vision_config
    text_width = int(config.get_text_config(decoder=True).hidden_size)
    positions = int(vision.num_position_embeddings)
    patch, blocks = int(vision.patch_size), int(vision.depth)
    sizes = Tower(
        width=int(vision.hidden_size),
        ffn=int(vision.intermediate_size),
        heads=int(vision.num_heads),
        blocks=blocks,
        side=isqrt(positions) * patch,
        patch=patch,
        epsilon=EPSILON,
        activation=str(vision.hidden_act),
    )
    sizes.check(int(vision.in_channels))
    check_patches(vision)
    deep = _deep_blocks(vision, positions)
    tower = Named({match[1]: name for name in stored if (match := _TOWER.match(name))}, stored)
    shapes = sizes.block_shapes({x: kind for x, (_, kind) in _MODULES.items()})
    shapes |= {f"{_FUSED}.weight": (3 * sizes.width, sizes.width), f"{_FUSED}.bias": (3 * sizes.width,)}
    outer = {"patch_embed.proj.bias": "v.patch_embd.bias", "pos_embed.weight": POSITIONS}
    of_outer: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.bias": (sizes.width,),
        "pos_embed.weight": (positions, sizes.width),
    }
    tensors = [
        *frame_embeddings(tower, sizes),
        *tower.outer(outer, of_outer),
        *tower.blocks("blocks", _NAMES, shapes, blocks, wanted),
        *_merger(tower, "merger", ("v.post_ln", "mm.0", "mm.2"), sizes.width, text_width, wanted, norm=sizes.width),
    ]
    for number, block in enumerate(deep):
        names = [f"v.deepstack.{block}.{x}" for x in ("norm", "fc1", "fc2")]
        tensors += _merger(tower, f"deepstack_merger_list.{number}", names, sizes.width, text_width, wanted)
    images, notes = picture_keys(folder, sizes)
    metadata = {
        **sizes.metadata("qwen3vl_merger", text_width),
        "clip.vision.spatial_merge_size": MERGED,
        "clip.vision.is_deepstack_layers": [index in deep for index in range(blocks)],
        **images,
    }
    return VisionPart(metadata, tuple(tensors), notes)


def _deep_blocks(vision: Any, positions: int) -> list[int]:
    """The blocks whose outputs decoder layers see too, the first layer the first."""
    deep = [int(x) for x in vision.deepstack_visual_indexes]
    if deep != sorted(set(deep)) or isqrt(positions) ** 2 != positions:
        raise UnsupportedModelError(
            "blocks that decoder layers see must be in ascending order, and position embeddings those of a square",
            values=f"deepstack_visual_indexes={deep}, num_position_embeddings={positions}",
        )
    return deep


def _merger(
    tower: Named,
    inside: str,
    names: Sequence[str],
    width: int,
    text_width: int,
    wanted: TensorType,
    *,
    norm: int | None = None,
) -> list[GgufTensor]:
    """A norm, of `norm` values or of all that are merged, and two linear layers, under mtmd's three `names`."""
    merged = width * MERGED**2
    shapes = {"norm": (norm or merged,), "linear_fc1": (merged, merged), "linear_fc2": (text_width, merged)}
    return [
        tower.tensor(f"{name}.{kind}", f"{inside}.{module}.{kind}", shape if kind == "weight" else shape[:1], wanted)
        for name, (module, shape) in zip(names, shapes.items(), strict=True)
        for kind in ("weight", "bias")
    ]
