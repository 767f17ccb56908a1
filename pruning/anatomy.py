"""What the decoder of a model is made of, in numbers: enough to price any plan without its weights.

Letters: L decoder layers, D model width, W FFN width (intermediate size), G KV groups, H query heads.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of the checkpoint. If it holds FFN channels, `ffn_layer` names the layer and `ffn_axis` the axis."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    ffn_layer: int | None = None
    ffn_axis: int | None = None

    def shape_with(self, widths: Sequence[int]) -> tuple[int, ...]:
        """The tensor's shape when layer l keeps `widths[l]` channels."""
        if self.ffn_layer is None or self.ffn_axis is None:
            return self.shape
        return (*self.shape[: self.ffn_axis], widths[self.ffn_layer], *self.shape[self.ffn_axis + 1 :])


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """One decoder layer of the dense model.

    `ffn_parameters_per_channel` counts every weight and bias that goes when one FFN channel goes
    (gate row, up row, down column: 3 D for a gated FFN without biases).
    `parameters` counts the whole layer, norms included.
    """

    index: int
    ffn_width: int
    num_heads: int
    num_kv_groups: int
    head_dim: int
    ffn_parameters_per_channel: int
    parameters: int

    @property
    def ffn_parameters(self) -> int:
        """Parameters that FFN pruning can remove, all channels."""
        return self.ffn_width * self.ffn_parameters_per_channel


@dataclass(frozen=True, slots=True)
class ModelAnatomy:
    """A multimodal model as the planner sees it.

    Attributes:
        model_type: `model_type` of the config ("llava").
        text_model_type: `model_type` of the language model inside ("llama").
        hidden_size: D.
        vocab_size: rows of the output head.
        layers: one entry per decoder layer, in order.
        total_parameters: every parameter of the model, shared ones counted once.
        dtype: the decoder weights' safetensors dtype name ("F32", "BF16", "F16").
        tensors: the checkpoint's tensors, sorted by name; tied ones once.
        fingerprint: sha256 over the structural config and all tensor names and shapes.
    """

    model_type: str
    text_model_type: str
    hidden_size: int
    vocab_size: int
    layers: tuple[DecoderLayer, ...]
    total_parameters: int
    dtype: str
    fingerprint: str
    tensors: tuple[TensorSpec, ...] = ()

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def ffn_parameters(self) -> int:
        """Parameters in scope `ffn`."""
        return sum(layer.ffn_parameters for layer in self.layers)

    @property
    def decoder_parameters(self) -> int:
        """Parameters in scope `decoder`: all weights of the decoder layers, without embeddings and head."""
        return sum(layer.parameters for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the inverse of `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "ModelAnatomy":
        layers = tuple(DecoderLayer(**layer) for layer in data["layers"])
        tensors = tuple(TensorSpec(**{**x, "shape": tuple(x["shape"])}) for x in data["tensors"])
        return cls(**{**data, "layers": layers, "tensors": tensors})
