"""The eyes of an InternVL: a tower with a class token and layer scales, merged patches, a norm, two linear layers.

mtmd computes tools/mtmd/models/internvl.cpp. It puts the class token after the patches and drops it there, so position
embeddings are written in that order, and nothing is lost (files of other converters have them in transformers' order:
each patch then gets its neighbour's).
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.anatomy.gguf_types import TensorType
from pruning.cutting.gguf.options import ClassToken
from pruning.cutting.gguf.tensors import Stored
from pruning.cutting.gguf.vision_parts import (
    POSITIONS,
    Named,
    Tower,
    VisionPart,
    check_projector,
    class_token_last,
    image_processor,
    normalisation,
)
from pruning.cutting.gguf.writer import Value
from pruning.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_TOWER = re.compile(r"^(?:.*\.)?vision_tower\.(.+)$")
_PROJECTOR = re.compile(r"^(?:.*\.)?multi_modal_projector\.(.+)$")

_OUTER_TENSORS = {
    "embeddings.cls_token": "v.class_embd",
    "embeddings.position_embeddings": POSITIONS,
    "embeddings.patch_embeddings.projection.weight": "v.patch_embd.weight",
    "embeddings.patch_embeddings.projection.bias": "v.patch_embd.bias",
    "layernorm.weight": "v.post_ln.weight",
    "layernorm.bias": "v.post_ln.bias",
}
_MODULES = {
    "layernorm_before": ("ln1", "norm"),
    "attention.q_proj": ("attn_q", "square"),
    "attention.k_proj": ("attn_k", "square"),
    "attention.v_proj": ("attn_v", "square"),
    "attention.projection_layer": ("attn_out", "square"),
    "layernorm_after": ("ln2", "norm"),
    "mlp.fc1": ("ffn_up", "up"),
    "mlp.fc2": ("ffn_down", "down"),
}
_SCALES = {"lambda_1": "ls1.weight", "lambda_2": "ls2.weight"}
_BLOCK_NAMES = {
    **{f"{x}.{kind}": f"{name}.{kind}" for x, (name, _) in _MODULES.items() for kind in ("weight", "bias")},
    **_SCALES,
}
_PROJECTIONS = (("layer_norm", 0), ("linear_1", 1), ("linear_2", 3))
"""The projector's modules -> their numbers in the file (clip.cpp, `TN_MVLM_PROJ_MLP`)."""


def internvl_vision(
    folder: Path, config: "PreTrainedConfig", stored: Stored, wanted: TensorType, class_token: ClassToken
) -> VisionPart:
    """The tower and projector of the checkpoint in `folder`, of `model_type` internvl.

    Raises:
        UnsupportedModelError: mtmd would not compute this tower, or cut pictures up otherwise.
        CheckpointError: tensors or the image processor are missing, or not those of the config.
    """
    vision = config.vision_config
    merged = round(1 / config.downsample_ratio)
    text_width = int(config.get_text_config(decoder=True).hidden_size)
    side, patch = _square(vision.image_size), _square(vision.patch_size)
    sizes = Tower.of(vision, side=side, patch=patch, blocks=int(vision.num_hidden_layers))
    _check_representable(config, vision)
    sizes.check(int(vision.num_channels), merged)
    width = sizes.width
    tower = Named({match[1]: name for name in stored if (match := _TOWER.match(name))}, stored)
    projector = Named({match[1]: name for name in stored if (match := _PROJECTOR.match(name))}, stored)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.position_embeddings": (1, (side // patch) ** 2 + 1, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (width,),
    }
    if not vision.use_mean_pooling:
        shapes |= {"layernorm.weight": (width,), "layernorm.bias": (width,)}
    blocks = sizes.block_shapes({x: kind for x, (_, kind) in _MODULES.items()}) | dict.fromkeys(_SCALES, (width,))
    if not vision.attention_bias:
        blocks = {x: shape for x, shape in blocks.items() if not re.fullmatch(r"attention\.[qkv]_proj\.bias", x)}
    tensors = tower.outer(_OUTER_TENSORS, shapes)
    if class_token is ClassToken.LAST:
        tensors = class_token_last(tensors)
    tensors += tower.blocks("encoder.layer", _BLOCK_NAMES, blocks, sizes.blocks, wanted)
    inside = width * merged**2
    of_modules = {"layer_norm": (inside,), "linear_1": (text_width, inside), "linear_2": (text_width, text_width)}
    for module, number in _PROJECTIONS:
        for kind, shape in (("weight", of_modules[module]), ("bias", of_modules[module][:1])):
            tensors.append(projector.tensor(f"mm.model.mlp.{number}.{kind}", f"{module}.{kind}", shape, wanted))
    metadata = sizes.metadata("internvl", text_width) | {"clip.vision.projector.scale_factor": merged}
    metadata |= _tiles(folder, side)
    return VisionPart(metadata, tuple(tensors), _notes(class_token, int(metadata["clip.vision.preproc_max_tiles"])))


def _notes(class_token: ClassToken, most_tiles: int) -> tuple[str, ...]:
    notes = []
    if class_token is ClassToken.FIRST:
        notes.append(
            "the vision part is for a llama.cpp that puts InternVL's class token first; in others (all known ones) "
            "every patch gets its neighbour's position: export it without --class-token first for them"
        )
    if most_tiles == 1:
        notes.append(
            "llama.cpp shows a picture as tiles and as a whole, also where this folder's image processor cuts no tiles"
        )
    return tuple(notes)


def _check_representable(config: "PreTrainedConfig", vision: Any) -> None:
    """Raises UnsupportedModelError if mtmd's InternVL graph is not this model's."""
    check_projector(config.projector_hidden_act)
    if vision.norm_type != "layer_norm" or vision.use_qk_norm:
        raise UnsupportedModelError(
            "the tower must have plain layer norms, and none of queries and keys",
            values=f"norm_type={vision.norm_type!r}, use_qk_norm={vision.use_qk_norm} (the tower of 6B weights)",
        )
    if config.vision_feature_layer != -1 or config.vision_feature_select_strategy != "default":
        raise UnsupportedModelError(
            "the projector must see all patches of the last block, and no class token",
            values=f"vision_feature_layer={config.vision_feature_layer}, "
            f"vision_feature_select_strategy={config.vision_feature_select_strategy!r}",
        )
    if not vision.use_absolute_position_embeddings or vision.use_mask_token:
        raise UnsupportedModelError(
            "the tower must have position embeddings, and no mask token",
            values=f"use_absolute_position_embeddings={vision.use_absolute_position_embeddings}, "
            f"use_mask_token={vision.use_mask_token}",
        )


def _square(sides: Any) -> int:
    """The one side of a square; raises UnsupportedModelError for other shapes."""
    both = {int(x) for x in (sides if isinstance(sides, list | tuple) else (sides,))}
    if len(both) != 1:
        raise UnsupportedModelError("pictures and patches must be squares", values=f"{sides}")
    return both.pop()


def _tiles(folder: Path, side: int) -> dict[str, Value]:
    """How many tiles a picture is cut into, as the folder's image processor does it."""
    images = image_processor(folder, "crop_to_patches", "min_patches", "max_patches")
    sides = {int(x) for x in dict(images.size).values() if x}
    if sides != {side}:
        raise UnsupportedModelError(
            "the image processor must make tiles of the tower's size",
            values=f"sides {sorted(sides)}, the tower's {side}",
        )
    fewest, most = (int(images.min_patches), int(images.max_patches)) if images.crop_to_patches else (1, 1)
    return {
        "clip.vision.preproc_min_tiles": fewest,
        "clip.vision.preproc_max_tiles": most,
        **normalisation(images),
    }
