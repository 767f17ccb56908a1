"""What the vision parts of all families share: names in the file, blocks of a transformer, the image processor."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pruning.anatomy.gguf_types import StoredType, TensorType, stored_type
from pruning.checkpoints.headers import StoredTensor
from pruning.cutting.gguf.tensors import GgufTensor, Stored, check_shape
from pruning.cutting.gguf.writer import Value
from pruning.errors import CheckpointError, UnsupportedModelError

GELU = {"gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast"}
"""mtmd's GELU is the tanh approximation, at most 5e-4 from the exact one."""

POSITIONS = "v.position_embd.weight"

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class VisionPart:
    """What the mmproj file of a family holds, and where mtmd may differ from transformers."""

    metadata: Mapping[str, Value]
    tensors: tuple[GgufTensor, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Named:
    """Tensors of a part of the checkpoint, by their names inside that part."""

    names: Mapping[str, str]
    stored: Stored

    def __contains__(self, inside: str) -> bool:
        return inside in self.names

    def known(self, inside: str, shape: tuple[int, ...]) -> StoredTensor:
        """The checkpoint's tensor; raises CheckpointError if it is not there, or of another shape."""
        if inside not in self.names:
            raise CheckpointError(
                "the checkpoint must hold the whole vision tower and projector", values=f"no {inside}"
            )
        check_shape(self.stored, self.names[inside], shape)
        return self.stored[self.names[inside]]

    def tensor(self, name: str, inside: str, shape: tuple[int, ...], wanted: TensorType) -> GgufTensor:
        """`inside`, under mtmd's `name` for it; vectors are f32."""
        return GgufTensor(name, shape, stored_type(shape, wanted), self.known(inside, shape))

    def outer(self, names: Mapping[str, str], shapes: Shapes) -> list[GgufTensor]:
        """Tensors outside the blocks, in f32: clip.cpp adds, concatenates and convolves them so. A first extent of 1, a
        batch's, is left out.
        """
        found = []
        for inside, shape in shapes.items():
            source = self.known(inside, shape)
            while shape[0] == 1 and len(shape) > 1:
                shape = shape[1:]
            found.append(GgufTensor(names[inside], shape, StoredType.F32, replace(source, shape=shape)))
        return found

    def blocks(
        self, prefix: str, names: Mapping[str, str], shapes: Shapes, count: int, wanted: TensorType
    ) -> list[GgufTensor]:
        """Tensors of the first `count` blocks: those of `names` (inside a block -> in the file) that are in `shapes`.

        Raises UnsupportedModelError if a block of the checkpoint has one that is not in `names`.
        """
        found = []
        for index in range(count):
            inside = f"{prefix}.{index}."
            held = {x.removeprefix(inside) for x in self.names if x.startswith(inside)}
            strange = sorted(held - names.keys())
            if strange:
                raise UnsupportedModelError(
                    "every tensor of the tower must have its place in mtmd", values=f"{inside}{strange[0]}"
                )
            found += [
                self.tensor(f"v.blk.{index}.{names[x]}", f"{inside}{x}", shape, wanted) for x, shape in shapes.items()
            ]
        return found


@dataclass(frozen=True, slots=True)
class Tower:
    """Sizes of a vision tower.

    Attributes:
        width: of its hidden states; ffn: of its FFNs.
        heads: of its attention.
        blocks: how many of them are in the file.
        side: of a picture (or tile) that it sees, patch: of a patch; in pixels.
        epsilon: of its norms.
        activation: of its FFNs, as transformers names it.
    """

    width: int
    ffn: int
    heads: int
    blocks: int
    side: int
    patch: int
    epsilon: float
    activation: str

    @classmethod
    def of(cls, vision: Any, *, side: int, patch: int, blocks: int) -> "Tower":
        """From a vision config with the usual names."""
        return cls(
            int(vision.hidden_size),
            int(vision.intermediate_size),
            int(vision.num_attention_heads),
            blocks,
            side,
            patch,
            float(vision.layer_norm_eps),
            str(vision.hidden_act),
        )

    def metadata(self, projector: str, text_width: int) -> dict[str, Value]:
        """Keys that tools/mtmd/clip.cpp reads of every tower, whose `projector` it calls so."""
        return {
            "general.type": "mmproj",
            "clip.has_vision_encoder": True,
            "clip.projector_type": projector,
            "clip.use_gelu": self.activation in GELU,
            "clip.use_silu": self.activation == "silu",
            "clip.vision.image_size": self.side,
            "clip.vision.patch_size": self.patch,
            "clip.vision.embedding_length": self.width,
            "clip.vision.feed_forward_length": self.ffn,
            "clip.vision.block_count": self.blocks,
            "clip.vision.projection_dim": text_width,
            "clip.vision.attention.head_count": self.heads,
            "clip.vision.attention.layer_norm_epsilon": self.epsilon,
        }

    def block_shapes(self, modules: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
        """Shapes of the weight and bias of each of a block's `modules` (its name -> norm | square | up | down)."""
        square = (self.width, self.width)
        shapes = {"norm": (self.width,), "square": square, "up": (self.ffn, self.width), "down": (self.width, self.ffn)}
        found: dict[str, tuple[int, ...]] = {}
        for module, kind in modules.items():
            found |= {f"{module}.weight": shapes[kind], f"{module}.bias": shapes[kind][:1]}
        return found

    def check(self, channels: int, merged: int = 1) -> None:
        """Raises UnsupportedModelError for an activation that mtmd has not, or if pictures are not RGB, or their
        patches cannot be merged `merged` x `merged`.
        """
        if self.activation not in GELU | {"quick_gelu", "silu"}:
            raise UnsupportedModelError(
                "the vision tower's activation must be GELU, quick GELU or SiLU", values=f"{self.activation!r}"
            )
        # A rest of pixels that is no whole patch is left out, there and here: 384 pixels are 27 patches of 14.
        if channels != 3 or (self.side // self.patch) % merged:
            raise UnsupportedModelError(
                "pictures must have three channels, and patches a side that can be merged",
                values=f"{channels} channels, {self.side // self.patch} patches a side, merged by {merged}",
            )


def siglip_blocks() -> dict[str, str]:
    """Modules of a block of CLIP's, SigLIP's and their descendants' towers -> their kinds for `block_shapes`."""
    attention = {f"self_attn.{x}_proj": "square" for x in ("q", "k", "v", "out")}
    return {"layer_norm1": "norm", "layer_norm2": "norm", "mlp.fc1": "up", "mlp.fc2": "down", **attention}


SIGLIP_NAMES = {
    f"{inside}.{kind}": f"{name}.{kind}"
    for inside, name in {
        "layer_norm1": "ln1",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.out_proj": "attn_out",
        "layer_norm2": "ln2",
        "mlp.fc1": "ffn_up",
        "mlp.fc2": "ffn_down",
    }.items()
    for kind in ("weight", "bias")
}
"""Those blocks' tensors -> clip.cpp's names (tools/mtmd/clip-impl.h)."""

SIGLIP_OUTER_NAMES = {
    "embeddings.patch_embedding.weight": "v.patch_embd.weight",
    "embeddings.patch_embedding.bias": "v.patch_embd.bias",
    "embeddings.position_embedding.weight": POSITIONS,
    "post_layernorm.weight": "v.post_ln.weight",
    "post_layernorm.bias": "v.post_ln.bias",
}
"""The same of what a SigLIP tower has around its blocks."""


def image_processor(folder: Path, *needed: str) -> Any:
    """The image processor of the checkpoint in `folder`, with what its processor always tells it.

    Raises CheckpointError if it lacks a setting of `needed`.
    """
    from pruning.checkpoints.loading import load_processor

    processor = load_processor(folder)
    images = copy(processor.image_processor)
    for name, value in (getattr(processor, "images_kwargs", None) or {}).items():
        setattr(images, name, value)
    missing = [x for x in needed if getattr(images, x, None) is None]
    if missing:
        raise CheckpointError(
            "the image processor must be one of the checkpoint's family",
            values=f"{type(images).__name__} has no {missing[0]}",
        )
    return images


def normalisation(images: Any) -> dict[str, Value]:
    """Mean and deviation of each channel, values of pixels in [0, 1], as an image processor has them.

    Raises UnsupportedModelError if it does not scale by 1/255 and normalise.
    """
    if not images.do_normalize or not np.isclose(images.rescale_factor, 1 / 255):
        raise UnsupportedModelError(
            "the image processor must scale pixels to [0, 1] and normalise them",
            values=f"do_normalize={images.do_normalize}, rescale_factor={images.rescale_factor}",
        )
    return {
        "clip.vision.image_mean": [float(x) for x in images.image_mean],
        "clip.vision.image_std": [float(x) for x in images.image_std],
    }


def check_projector(activation: str) -> None:
    """Raises UnsupportedModelError for an activation that mtmd has not."""
    if activation not in GELU:
        raise UnsupportedModelError(
            "the projector's activation must be GELU", values=f"projector_hidden_act={activation!r}"
        )


def class_token_last(tensors: Sequence[GgufTensor]) -> list[GgufTensor]:
    """The same, but position embeddings [1 + patches, width] with the class token's last instead of first."""
    return [_rolled(tensor) if tensor.name == POSITIONS else tensor for tensor in tensors]


def _rolled(positions: GgufTensor) -> GgufTensor:
    rows = np.concatenate(list(positions.blocks()))
    return replace(positions, source=None, values=np.roll(rows, -1, axis=0))
