"""The eyes of a SmolVLM or Idefics3: a SigLIP tower, neighbouring patches merged into one token, one linear layer.

mtmd computes the branch `idefics3` of tools/mtmd/models/siglip.cpp: patches, positions, all blocks, the last norm, the
merge (pixel shuffle) and the projection. A picture is cut into tiles of the tower's size, and seen as a whole besides.
"""

import re
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
from pruning.cutting.gguf.writer import Value
from pruning.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_TOWER = re.compile(r"^(?:.*\.)?vision_model\.(.+)$")
_CONNECTOR = re.compile(r"^(?:.*\.)?connector\.(.+)$")
_PROJECTION = "modality_projection.proj.weight"

_UNSPLIT = (
    "llama.cpp always cuts pictures into tiles; this folder's image processor is told not to (do_image_splitting=false)"
)


def smolvlm_vision(folder: Path, config: "PreTrainedConfig", stored: Stored, wanted: TensorType) -> VisionPart:
    """The tower and connector of the checkpoint in `folder`, of `model_type` smolvlm or idefics3.

    Raises:
        UnsupportedModelError: mtmd would not compute this tower, or cut pictures up otherwise.
        CheckpointError: tensors or the image processor are missing, or not those of the config.
    """
    vision, merged = config.vision_config, int(config.scale_factor)
    text_width = int(config.get_text_config(decoder=True).hidden_size)
    blocks = int(vision.num_hidden_layers)
    sizes = Tower.of(vision, side=int(vision.image_size), patch=int(vision.patch_size), blocks=blocks)
    sizes.check(int(vision.num_channels), merged)
    width, patch = sizes.width, sizes.patch
    if merged < 2:
        raise UnsupportedModelError("patches must be merged", values=f"scale_factor={merged}")
    tower = Named({match[1]: name for name in stored if (match := _TOWER.match(name))}, stored)
    connector = Named({match[1]: name for name in stored if (match := _CONNECTOR.match(name))}, stored)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "embeddings.patch_embedding.bias": (width,),
        "embeddings.position_embedding.weight": ((sizes.side // patch) ** 2, width),
        "post_layernorm.weight": (width,),
        "post_layernorm.bias": (width,),
    }
    of_blocks = sizes.block_shapes(siglip_blocks())
    tensors = [
        *tower.outer(SIGLIP_OUTER_NAMES, shapes),
        *tower.blocks("encoder.layers", SIGLIP_NAMES, of_blocks, blocks, wanted),
        connector.tensor("mm.model.fc.weight", _PROJECTION, (text_width, width * merged**2), wanted),
    ]
    tiles, notes = _tiles(folder, sizes.side)
    metadata = sizes.metadata("idefics3", text_width) | {"clip.vision.projector.scale_factor": merged, **tiles}
    return VisionPart(metadata, tuple(tensors), notes)


def _tiles(folder: Path, side: int) -> tuple[dict[str, Value], tuple[str, ...]]:
    """How pictures are cut up, and where that differs from the folder's image processor."""
    images = image_processor(folder, "max_image_size", "do_image_splitting")
    tile, longest = (dict(x).get("longest_edge") for x in (images.max_image_size, images.size))
    if tile != side or longest is None:
        raise UnsupportedModelError(
            "the image processor must cut pictures, their longer side resized, into tiles of the tower's size",
            values=f"tiles of {tile}, the tower's side {side}, a longer side of {longest}",
        )
    found = {"clip.vision.preproc_image_size": int(longest), **normalisation(images)}
    return found, () if images.do_image_splitting else (_UNSPLIT,)
