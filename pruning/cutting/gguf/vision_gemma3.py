"""The eyes of a Gemma 3: a SigLIP tower, squares of its patches averaged into one token, a norm and one matrix.

mtmd computes the branch `gemma3` of tools/mtmd/models/siglip.cpp, and lets the tokens of a picture see each other.
"""

import re
from dataclasses import replace
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING

from pruning.anatomy.gguf_types import TensorType
from pruning.cutting.gguf.tensors import Stored
from pruning.cutting.gguf.vision_parts import (
    SIGLIP_NAMES,
    SIGLIP_OUTER_NAMES,
    Named,
    Tower,
    VisionPart,
    image_processor,
    normalisation,
    siglip_blocks,
)
from pruning.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_TOWER = re.compile(r"^(?:.*\.)?vision_tower\.(?:vision_model\.)?(.+)$")
_PROJECTOR = re.compile(r"^(?:.*\.)?multi_modal_projector\.(.+)$")
_NOTES = (
    "llama.cpp pads pictures that are not square, where transformers stretches them",
    "llama.cpp writes no empty lines around a picture, where transformers' processor does: write them in the prompt",
)


def gemma3_vision(folder: Path, config: "PreTrainedConfig", stored: Stored, wanted: TensorType) -> VisionPart:
    """The tower and projector of the checkpoint in `folder`, of `model_type` gemma3.

    Raises:
        UnsupportedModelError: mtmd would not compute this tower, or resize pictures otherwise.
        CheckpointError: tensors or the image processor are missing, or not those of the config.
    """
    vision = config.vision_config
    text_width = int(config.get_text_config(decoder=True).hidden_size)
    blocks, side, patch = int(vision.num_hidden_layers), int(vision.image_size), int(vision.patch_size)
    sizes = Tower.of(vision, side=side, patch=patch, blocks=blocks)
    patches, tokens = side // patch, isqrt(int(config.mm_tokens_per_image))
    merged = patches // max(tokens, 1)
    if vision.model_type != "siglip_vision_model" or tokens**2 != config.mm_tokens_per_image or not merged:
        raise UnsupportedModelError(
            "the tower must be SigLIP's, and a picture's tokens a square of no more than its patches",
            values=f"model_type={vision.model_type!r}, mm_tokens_per_image={config.mm_tokens_per_image}, "
            f"{patches} patches a side",
        )
    sizes.check(int(vision.num_channels), merged)
    tower = Named({match[1]: name for name in stored if (match := _TOWER.match(name))}, stored)
    projector = Named({match[1]: name for name in stored if (match := _PROJECTOR.match(name))}, stored)
    width = sizes.width
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "embeddings.patch_embedding.bias": (width,),
        "embeddings.position_embedding.weight": (patches**2, width),
        "post_layernorm.weight": (width,),
        "post_layernorm.bias": (width,),
    }
    norm = projector.tensor("mm.soft_emb_norm.weight", "mm_soft_emb_norm.weight", (width,), wanted)
    # llama.cpp transposes the matrix as it goes along, which it cannot do with blocks of q8_0.
    plain = TensorType.F16 if wanted is TensorType.Q8_0 else wanted
    matrix = projector.tensor("mm.input_projection.weight", "mm_input_projection_weight", (width, text_width), plain)
    tensors = [
        *tower.outer(SIGLIP_OUTER_NAMES, shapes),
        *tower.blocks("encoder.layers", SIGLIP_NAMES, sizes.block_shapes(siglip_blocks()), blocks, wanted),
        replace(norm, shift=1.0),  # which transformers adds to the weights of Gemma's norms
        matrix,
    ]
    images = image_processor(folder)
    sides = {int(x) for x in dict(images.size).values() if x}
    if sides != {side}:
        raise UnsupportedModelError(
            "the image processor must make squares of the tower's size",
            values=f"sides {sorted(sides)}, the tower's {side}",
        )
    metadata = sizes.metadata("gemma3", text_width) | {"clip.vision.projector.scale_factor": merged}
    return VisionPart(metadata | normalisation(images), tuple(tensors), _NOTES)
