"""The eyes of a LLaVA as a GGUF file of their own (mmproj): vision tower and projector, as llama.cpp's mtmd reads them.

mtmd computes LLaVA's graph (tools/mtmd/models/llava.cpp): patches, a class token if there is one, positions, blocks up
to the one whose output is looked at, the patches' rows of it, and a projector of two layers with GELU between. Its GELU
is the tanh approximation, at most 5e-4 from the exact one.

Releases since May 2025 put the class token of a CLIP tower after the patches and still count positions and rows as if
it came first (ggml-org/llama.cpp#25814, seen in llama-cpp-python 0.3.36): every patch gets the position of the one
before, and the projector sees the class token instead of the first patch. The positions can be written so that each
lands where it belongs; the lost patch cannot be brought back. Of 60 answers of the reference, 58 are transformers'
then, 33 with positions as they were, and all 60 in a llama.cpp that puts the class token first.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pruning.checkpoints.headers import StoredTensor
from pruning.cutting.gguf.options import ClassToken, TensorType
from pruning.cutting.gguf.tensor_types import stored_type
from pruning.cutting.gguf.tensors import GgufTensor, Stored, check_shape
from pruning.cutting.gguf.writer import GgufFile, Value
from pruning.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


_CLIP = "clip_vision_model"
_TOWERS = (_CLIP, "siglip_vision_model")
_POSITIONS = "v.position_embd.weight"
_GELU = {"gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast"}
_TOWER = re.compile(r"^(?:.*\.)?vision_tower\.(?:vision_model\.)?(.+)$")
_PROJECTOR = re.compile(r"^(?:.*\.)?multi_modal_projector\.(.+)$")
_BLOCK = re.compile(r"^encoder\.layers\.(\d+)\.(.+)\.(weight|bias)$")

_BLOCK_TENSORS = {
    "layer_norm1": "ln1",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "layer_norm2": "ln2",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
_OUTER_TENSORS = {
    "embeddings.class_embedding": "v.class_embd",
    "embeddings.patch_embedding.weight": "v.patch_embd.weight",
    "embeddings.patch_embedding.bias": "v.patch_embd.bias",
    "embeddings.position_embedding.weight": _POSITIONS,
    "pre_layrnorm.weight": "v.pre_ln.weight",  # the misspelling is the library's
    "pre_layrnorm.bias": "v.pre_ln.bias",
}
"""The tower's and the blocks' names -> clip.cpp's (tools/mtmd/clip-impl.h). A LLaVA looks at hidden states before the
tower's last norm, which clip.cpp would apply if it were in the file."""


def vision_file(
    folder: Path, config: "PreTrainedConfig", stored: Stored, wanted: TensorType, class_token: ClassToken
) -> GgufFile:
    """What the mmproj file of the checkpoint in `folder` will hold.

    Raises:
        UnsupportedModelError: mtmd would not compute this tower, projector or way of cutting pictures up.
        CheckpointError: tensors or the image processor are missing, or not those of the config.
    """
    _check_representable(config)
    vision = config.vision_config
    layers = _feature_layers(config)
    metadata = _metadata(folder, config, vision, layers)
    tower = {match[1]: name for name in stored if (match := _TOWER.match(name))}
    projector = {match[1]: name for name in stored if (match := _PROJECTOR.match(name))}
    tensors = _tower_tensors(vision, tower, stored, layers, wanted)
    if is_clip(config) and class_token is ClassToken.LAST:
        tensors = [_rolled(tensor) if tensor.name == _POSITIONS else tensor for tensor in tensors]
    tensors += _projector_tensors(config, projector, stored, len(layers), wanted)
    return GgufFile("clip", metadata, tuple(tensors), wanted)


def is_clip(config: "PreTrainedConfig") -> bool:
    """Whether the vision tower has a class token."""
    return bool(config.vision_config.model_type == _CLIP)


def _rolled(positions: GgufTensor) -> GgufTensor:
    """Position embeddings [1 + patches, width], the class token's last instead of first."""
    rows = np.concatenate(list(positions.blocks()))
    return replace(positions, source=None, values=np.roll(rows, -1, axis=0))


def _check_representable(config: "PreTrainedConfig") -> None:
    """Raises UnsupportedModelError if mtmd's LLaVA graph is not this model's."""
    if config.model_type != "llava":
        reason = {
            "llava_next": ", which cuts pictures into tiles and puts a newline embedding after each row of patches",
            "llava_onevision": ", which cuts pictures into tiles and scales their features down",
            "vipllava": ", whose projector has a norm",
        }.get(config.model_type, "")
        raise UnsupportedModelError(
            "the vision part must be a LLaVA's, one picture a row of patches",
            values=f"model_type={config.model_type!r}{reason}",
            remedy="Export the language model alone, without --mmproj",
        )
    vision = config.vision_config
    if vision.model_type not in _TOWERS:
        raise UnsupportedModelError(
            "the vision tower must be one that llama.cpp's LLaVA graph computes",
            values=f"model_type={vision.model_type!r}",
            remedy=f"Towers that can be exported: {', '.join(_TOWERS)}",
        )
    if vision.hidden_act not in _GELU | {"quick_gelu", "silu"}:
        raise UnsupportedModelError(
            "the vision tower's activation must be GELU, quick GELU or SiLU", values=f"{vision.hidden_act!r}"
        )
    if config.projector_hidden_act not in _GELU:
        raise UnsupportedModelError(
            "the projector's activation must be GELU", values=f"projector_hidden_act={config.projector_hidden_act!r}"
        )
    expected = "default" if vision.model_type == _CLIP else "full"
    if config.vision_feature_select_strategy != expected:
        raise UnsupportedModelError(
            "the projector must see all patches, and no class token",
            values=f"vision_feature_select_strategy={config.vision_feature_select_strategy!r} of {vision.model_type}",
        )
    if int(getattr(vision, "num_channels", 3)) != 3 or vision.image_size % vision.patch_size:
        raise UnsupportedModelError(
            "pictures must have three channels and a whole number of patches a side",
            values=f"{vision.num_channels} channels, {vision.image_size} / {vision.patch_size} pixels",
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


def _metadata(folder: Path, config: "PreTrainedConfig", vision: Any, layers: list[int]) -> dict[str, Value]:
    """The keys that tools/mtmd/clip.cpp reads; blocks after the last one that is looked at are left out."""
    mean, std = _normalisation(folder, int(vision.image_size))
    return {
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.projector_type": "mlp",
        "clip.use_gelu": vision.hidden_act in _GELU,
        "clip.use_silu": vision.hidden_act == "silu",
        "clip.vision.image_size": int(vision.image_size),
        "clip.vision.patch_size": int(vision.patch_size),
        "clip.vision.embedding_length": int(vision.hidden_size),
        "clip.vision.feed_forward_length": int(vision.intermediate_size),
        "clip.vision.block_count": layers[-1],
        "clip.vision.feature_layer": layers,
        "clip.vision.projection_dim": int(config.get_text_config(decoder=True).hidden_size),
        "clip.vision.attention.head_count": int(vision.num_attention_heads),
        "clip.vision.attention.layer_norm_epsilon": float(vision.layer_norm_eps),
        "clip.vision.image_mean": mean,
        "clip.vision.image_std": std,
    }


def _normalisation(folder: Path, image_size: int) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel, values of pixels in [0, 1], as the folder's image processor has them."""
    from pruning.checkpoints.loading import load_processor

    images = load_processor(folder).image_processor
    sides = {int(x) for x in dict(images.crop_size if images.do_center_crop else images.size).values() if x}
    if not images.do_normalize or not np.isclose(images.rescale_factor, 1 / 255) or sides != {image_size}:
        raise UnsupportedModelError(
            "the image processor must make squares of the tower's size, scaled to [0, 1] and normalised",
            values=f"do_normalize={images.do_normalize}, rescale_factor={images.rescale_factor}, sides {sorted(sides)}",
        )
    return [float(x) for x in images.image_mean], [float(x) for x in images.image_std]


def _tower_tensors(
    vision: Any, names: dict[str, str], stored: Stored, layers: list[int], wanted: TensorType
) -> list[GgufTensor]:
    """Embeddings, norms and the blocks up to the last one that is looked at."""
    width, patch = int(vision.hidden_size), int(vision.patch_size)
    has_class = vision.model_type == _CLIP
    patches = (int(vision.image_size) // patch) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "embeddings.position_embedding.weight": (patches + has_class, width),
    }
    if has_class:
        shapes |= {"embeddings.class_embedding": (width,)}
        shapes |= {f"pre_layrnorm.{kind}": (width,) for kind in ("weight", "bias")}
    else:
        shapes |= {"embeddings.patch_embedding.bias": (width,)}
    found = []
    for inside, shape in shapes.items():
        source = _known(names, inside, stored, shape)
        # Added to, concatenated and convolved in f32 by clip.cpp.
        found.append(GgufTensor(_OUTER_TENSORS[inside], shape, TensorType.F32, source))
    ffn = int(vision.intermediate_size)
    block: dict[str, tuple[int, ...]] = dict.fromkeys(_BLOCK_TENSORS, (width, width))
    block |= {"layer_norm1": (width,), "layer_norm2": (width,), "mlp.fc1": (ffn, width), "mlp.fc2": (width, ffn)}
    for index in range(layers[-1]):
        for module, shape in block.items():
            for kind, extent in (("weight", shape), ("bias", shape[:1])):
                source = _known(names, f"encoder.layers.{index}.{module}.{kind}", stored, extent)
                name = f"v.blk.{index}.{_BLOCK_TENSORS[module]}.{kind}"
                found.append(GgufTensor(name, extent, stored_type(extent, wanted), source))
    strange = [name for name in names if (match := _BLOCK.match(name)) is not None and match[2] not in _BLOCK_TENSORS]
    if strange:
        raise UnsupportedModelError("every tensor of the tower must have its place in mtmd", values=strange[0])
    return found


def _projector_tensors(
    config: "PreTrainedConfig", names: dict[str, str], stored: Stored, num_features: int, wanted: TensorType
) -> list[GgufTensor]:
    """The two linear layers; mtmd adds a bias to each, so one that the checkpoint lacks is written as zeros."""
    hidden = int(config.get_text_config(decoder=True).hidden_size)
    found = []
    widths = {"linear_1": int(config.vision_config.hidden_size) * num_features, "linear_2": hidden}
    for index, (module, width) in enumerate(widths.items()):
        shape = (hidden, width)
        source = _known(names, f"{module}.weight", stored, shape)
        name = f"mm.{2 * index}"
        found.append(GgufTensor(f"{name}.weight", shape, stored_type(shape, wanted), source))
        if f"{module}.bias" in names:
            bias = _known(names, f"{module}.bias", stored, (hidden,))
            found.append(GgufTensor(f"{name}.bias", (hidden,), TensorType.F32, bias))
        else:
            zeros = np.zeros(hidden, dtype=np.float32)
            found.append(GgufTensor(f"{name}.bias", (hidden,), TensorType.F32, values=zeros))
    return found


def _known(names: dict[str, str], inside: str, stored: Stored, shape: tuple[int, ...]) -> StoredTensor:
    """The checkpoint's tensor; raises CheckpointError if it is not there, or of another shape."""
    if inside not in names:
        raise CheckpointError("the checkpoint must hold the whole vision tower and projector", values=f"no {inside}")
    check_shape(stored, names[inside], shape)
    return stored[names[inside]]
