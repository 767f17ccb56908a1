"""Which weights of a checkpoint are made anew: those of all projections in decoder layers and vision layers.

Embeddings, output head, projector, norms and biases stay as they are.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from torch import nn

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Sublayer
from pruning.anatomy.families import FAMILIES, Family
from pruning.anatomy.tensor_roles import TensorHeader, decoder_tensor
from pruning.checkpoints.headers import StoredTensor
from pruning.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Part(StrEnum):
    """The two stacks of layers of a multimodal model."""

    LANGUAGE = "language"
    VISION = "vision"


@dataclass(frozen=True, slots=True)
class Projection:
    """One weight.

    Attributes:
        name: of the weight in the checkpoint.
        inside: of the linear layer, within its decoder or vision layer.
        shape: (outputs, inputs).
        dtype: its safetensors dtype.
        shares: `inside` of the first projection of the layer that has the same inputs: itself, where none has.
    """

    name: str
    inside: str
    shape: tuple[int, int]
    dtype: str
    shares: str

    @property
    def parameters(self) -> int:
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True, slots=True)
class Block:
    """One layer of a part, with its projections."""

    part: Part
    index: int
    projections: tuple[Projection, ...]

    @property
    def key(self) -> str:
        """A name for files."""
        return f"{self.part}-{self.index:05d}"

    @property
    def parameters(self) -> int:
        """Weights of its projections."""
        return sum(x.parameters for x in self.projections)

    def __str__(self) -> str:
        return f"{self.part} layer {self.index}"


def language_blocks(anatomy: ModelAnatomy) -> tuple[Block, ...]:
    """[L] the decoder layers of a dense checkpoint."""
    headers = ((tensor.name, tensor.shape, tensor.dtype) for tensor in anatomy.tensors)
    return decoder_blocks(FAMILIES[anatomy.text_model_type], anatomy.num_layers, headers)


def decoder_blocks(family: Family, num_layers: int, headers: Iterable[TensorHeader]) -> tuple[Block, ...]:
    """[L] the decoder layers among the tensors `headers`; one of which nothing is left has no projections."""
    shares = {name: group[0] for group in (family.attention_in, family.ffn_in) for name in group}
    found: dict[int, dict[str, Projection]] = {index: {} for index in range(num_layers)}
    for name, shape, dtype in headers:
        place = decoder_tensor(name)
        inside, _, kind = (place[1] if place else "").rpartition(".")
        if place is not None and kind == "weight" and len(shape) == 2:
            outputs, inputs = shape
            own = Projection(name, inside, (outputs, inputs), dtype, shares.get(inside, inside))
            found[place[0]][inside] = own
    order = [name for sublayer in (Sublayer.ATTENTION, Sublayer.FFN) for name in family.linears(sublayer)]
    return tuple(
        Block(Part.LANGUAGE, index, tuple(own[name] for name in order if name in own)) for index, own in found.items()
    )


def vision_layers(model: "PreTrainedModel") -> tuple[str, Sequence[nn.Module]] | None:
    """The vision tower's layers and what they are called in the model; None if it has no tower.

    They are the longest list of equal modules outside of the decoder: mergers and resamplers have fewer layers.
    """
    decoder = model.get_decoder()
    own = {id(module) for module in decoder.modules()}
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and id(module) not in own
        and len({type(x) for x in module}) == 1
        and any(isinstance(x, nn.Linear) for x in module.modules())
    ]
    if not lists:
        return None
    name, layers = max(lists, key=lambda x: (len(x[1]), sum(p.numel() for p in x[1].parameters())))
    return name, tuple(layers)


def vision_blocks(model: "PreTrainedModel", stored: Mapping[str, StoredTensor]) -> tuple[Block, ...]:
    """[V] the vision layers of a checkpoint with the tensors `stored`, `model` being loaded from it; none: no tower.

    Raises UnsupportedModelError if a weight of theirs is not in the files as it is in the model.
    """
    found = vision_layers(model)
    if found is None:
        return ()
    name, layers = found
    return tuple(
        Block(
            Part.VISION,
            index,
            tuple(
                _stored_projection(f"{name}.{index}.{inside}.weight", inside, linear, stored)
                for inside, linear in layer.named_modules()
                if isinstance(linear, nn.Linear)
            ),
        )
        for index, layer in enumerate(layers)
    )


def _stored_projection(name: str, inside: str, linear: nn.Linear, stored: Mapping[str, StoredTensor]) -> Projection:
    """By the longest end of its name that one tensor of the files has, which differ in what stands before."""
    shape = (linear.out_features, linear.in_features)
    parts = name.split(".")
    for first in range(len(parts)):
        end = ".".join(parts[first:])
        candidates = [
            x for x in stored.values() if (x.name == end or x.name.endswith(f".{end}")) and not decoder_tensor(x.name)
        ]
        if candidates:
            if len(candidates) == 1 and candidates[0].shape == shape:
                return Projection(candidates[0].name, inside, shape, candidates[0].dtype, inside)
            break
    raise UnsupportedModelError(
        "the weights of vision layers must be in the files as the model has them",
        values=f"{name} {list(shape)}",
        remedy="Choose --modules language",
    )
