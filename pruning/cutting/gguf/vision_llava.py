"""The eyes of a LLaVA: a CLIP or SigLIP tower up to the block whose output is looked at, and two linear layers.

mtmd computes tools/mtmd/models/llava.cpp: patches, a class token if there is one, positions, blocks, the patches' rows
of what is looked at, and a projector of two layers with GELU between.

Releases since May 2025 put the class token of a CLIP tower after the patches and still count positions and rows as if
it came first (ggml-org/llama.cpp#25814, seen in llama-cpp-python 0.3.36): every patch gets the position of the one
before, and the projector sees the class token instead of the first patch. The positions can be written so that each
lands where it belongs; the lost patch cannot be brought back. Of 60 answers of the reference, 58 are transformers'
then, 33 with positions as they were, and all 60 in a llama.cpp that puts the class token first.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pruning.anatomy.gguf_types import StoredType, TensorType
from pruning.cutting.gguf.options import ClassToken
from pruning.cutting.gguf.tensors import GgufTensor, Stored
from pruning.cutting.gguf.vision_parts import (
    POSITIONS,
    SIGLIP_NAMES,
    Named,
    Tower,
    VisionPart,
    check_projector,
    class_token_last,
    image_processor,
    normalisation,
    siglip_blocks,
)
from pruning.cutting.gguf.writer import Value
from pruning.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


_CLIP = "clip_vision_model"
_TOWERS = (_CLIP, "siglip_vision_model")
_TOWER = re.compile(r"^(?:.*\.)?vision_tower\.(?:vision_model\.)?(.+)$")
_PROJECTOR = re.compile(r"^(?:.*\.)?multi_modal_projector\.(.+)$")

_OUTER_TENSORS = {
    "embeddings.class_embedding": "v.class_embd",
    "embeddings.patch_embedding.weight": "v.patch_embd.weight",
    "embeddings.patch_embedding.bias": "v.patch_embd.bias",
    "embeddings.position_embedding.weight": POSITIONS,
    "pre_layrnorm.weight": "v.pre_ln.weight",  # the misspelling is the library's
    "pre_layrnorm.bias": "v.pre_ln.bias",
}
"""The tower's names -> clip.cpp's. A LLaVA looks at hidden states before the tower's last norm, which clip.cpp would
apply if it were in the file."""


def llava_vision(
    folder: Path, config: "PreTrainedConfig", stored: Stored, wanted: TensorType, class_token: ClassToken
) -> VisionPart:
    """The tower and projector of the checkpoint in `folder`, of `model_type` llava.

    Raises:
        UnsupportedModelError: mtmd would not compute this tower, projector or way of cutting pictures up.
        CheckpointError: tensors or the image processor are missing, or not those of the config.
    """
    vision = config.vision_config
    _check_representable(config)
    layers = _feature_layers(config)
    sizes = Tower.of(vision, side=int(vision.image_size), patch=int(vision.patch_size), blocks=layers[-1])
    sizes.check(int(getattr(vision, "num_channels", 3)))
    tower = Named({match[1]: name for name in stored if (match := _TOWER.match(name))}, stored)
    projector = Named({match[1]: name for name in stored if (match := _PROJECTOR.match(name))}, stored)
    tensors = _tower_tensors(sizes, tower, vision.model_type == _CLIP, wanted)
    if vision.model_type == _CLIP and class_token is ClassToken.LAST:
        tensors = class_token_last(tensors)
    tensors += _projector_tensors(config, projector, len(layers), wanted)
    return VisionPart(_metadata(folder, config, sizes, layers), tuple(tensors), _notes(vision, class_token))


def _check_representable(config: "PreTrainedConfig") -> None:
    """Raises UnsupportedModelError if mtmd's LLaVA graph is not this model's."""
    vision = config.vision_config
    if vision.model_type not in _TOWERS:
        raise UnsupportedModelError(
            "the vision tower must be one that llama.cpp's LLaVA graph computes",
            values=f"model_type={vision.model_type!r}",
            remedy=f"Towers that can be exported: {', '.join(_TOWERS)}",
        )
    check_projector(config.projector_hidden_act)
    expected = "default" if vision.model_type == _CLIP else "full"
    if config.vision_feature_select_strategy != expected:
        raise UnsupportedModelError(
            "the projector must see all patches, and no class token",
            values=f"vision_feature_select_strategy={config.vision_feature_select_strategy!r} of {vision.model_type}",
        )


def _feature_layers(config: "PreTrainedConfig") -> list[int]:
    """Which hidden states the projector sees: 0 is what goes into the first block, n what comes out of the n-th."""
    count = int(config.vision_config.num_hidden_layers)
    asked = config.vision_feature_layer
    layers = [int(x) + count + 1 if int(x) < 0 else int(x) for x in ([asked] if isinstance(asked, int) else asked)]
    if layers != sorted(set(layers)) or not layers or layers[0] < 1 or layers[-1] > count:
        raise UnsupportedModelError(
            "the hidden states that the projector sees must be in ascending order, and of blocks of the tower",
            values=f"vision_feature_layer={asked!r} of {count} blocks",
        )
    return layers


def _metadata(folder: Path, config: "PreTrainedConfig", sizes: Tower, layers: list[int]) -> dict[str, Value]:
    """Blocks after the last one that is looked at are left out."""
    images = image_processor(folder)
    sides = {int(x) for x in dict(images.crop_size if images.do_center_crop else images.size).values() if x}
    if sides != {sizes.side}:
        raise UnsupportedModelError(
            "the image processor must make squares of the tower's size",
            values=f"sides {sorted(sides)}, the tower's {sizes.side}",
        )
    return {
        **sizes.metadata("mlp", int(config.get_text_config(decoder=True).hidden_size)),
        "clip.vision.feature_layer": layers,
        **normalisation(images),
    }


def _tower_tensors(sizes: Tower, tower: Named, has_class: bool, wanted: TensorType) -> list[GgufTensor]:
    """Embeddings, norms and the blocks up to the last one that is looked at."""
    width, patches = sizes.width, (sizes.side // sizes.patch) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.patch_embedding.weight": (width, 3, sizes.patch, sizes.patch),
        "embeddings.position_embedding.weight": (patches + has_class, width),
    }
    if has_class:
        shapes |= {"embeddings.class_embedding": (width,)}
        shapes |= {f"pre_layrnorm.{kind}": (width,) for kind in ("weight", "bias")}
    else:
        shapes |= {"embeddings.patch_embedding.bias": (width,)}
    blocks = sizes.block_shapes(siglip_blocks())
    return [
        *tower.outer(_OUTER_TENSORS, shapes),
        *tower.blocks("encoder.layers", SIGLIP_NAMES, blocks, sizes.blocks, wanted),
    ]


def _projector_tensors(
    config: "PreTrainedConfig", projector: Named, num_features: int, wanted: TensorType
) -> list[GgufTensor]:
    """The two linear layers; mtmd adds a bias to each, so one that the checkpoint lacks is written as zeros."""
    hidden = int(config.get_text_config(decoder=True).hidden_size)
    found = []
    widths = {"linear_1": int(config.vision_config.hidden_size) * num_features, "linear_2": hidden}
    for index, (module, width) in enumerate(widths.items()):
        name = f"mm.{2 * index}"
        found.append(projector.tensor(f"{name}.weight", f"{module}.weight", (hidden, width), wanted))
        if f"{module}.bias" in projector:
            found.append(projector.tensor(f"{name}.bias", f"{module}.bias", (hidden,), wanted))
        else:
            zeros = np.zeros(hidden, dtype=np.float32)
            found.append(GgufTensor(f"{name}.bias", (hidden,), StoredType.F32, values=zeros))
    return found


def _notes(vision: Any, class_token: ClassToken) -> tuple[str, ...]:
    crop = "llama.cpp pads pictures that are not square, where transformers may crop or stretch them"
    if vision.model_type != _CLIP:
        return (crop,)
    if class_token is ClassToken.FIRST:
        written = "the vision part is for a llama.cpp that puts CLIP's class token first (ggml-org/llama.cpp#25814)"
    else:
        written = (
            "llama.cpp loses the first patch of a picture with CLIP towers (ggml-org/llama.cpp#25814); the vision part "
            "is for releases that do, export it with --class-token first for one that does not"
        )
    return (crop, written)
