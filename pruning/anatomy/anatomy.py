"""What the decoder of a model is made of, in numbers: enough to price any plan without its weights.

Letters: L decoder layers, D model width, W FFN width (intermediate size), G KV groups, H query heads, d head size.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pruning.anatomy.architecture import Architecture, Option, Sublayer
from pruning.anatomy.decoder_layer import DecoderLayer, TensorSpec, architecture_of
from pruning.anatomy.tensor_roles import tensor_specs


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
        num_rotary_factors: of rotary frequencies that the config scales, which GGUF files hold; None: not recorded.
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
    # Models that were registered before it was recorded are still the same models.
    num_rotary_factors: int | None = field(default=None, compare=False)

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

    def architecture(self, ffn_widths: Sequence[int], kv_groups: Sequence[int] | None = None) -> Architecture:
        """What keeps `ffn_widths` [L] channels and `kv_groups` [L], by default all of them."""
        return architecture_of(self.layers, ffn_widths, kv_groups)

    def dense_units(self, sublayer: Sublayer) -> tuple[int, ...]:
        """[L] FFN channels or KV groups of the dense model."""
        return tuple(layer.units(sublayer) for layer in self.layers)

    def ffn_widths(self, architecture: Architecture) -> tuple[int, ...]:
        """[L] FFN channels that `architecture` keeps; raises InputError if it names a layer beyond."""
        return architecture.units(Sublayer.FFN, self.dense_units(Sublayer.FFN))

    def sizes(self, architecture: Architecture) -> Architecture:
        """The units that `architecture` keeps, alone: what is in fewer bits, or less dense, counts as it is."""
        if all(option == Option(option.units) for _, option in architecture.items):
            return architecture
        plain = ((site, Option(x.units)) for site, x in architecture.items)
        return Architecture.of((s, x) for s, x in plain if x != Option(self.layers[s.layer].units(s.sublayer)))

    def ffn_widths_alone(self, architecture: Architecture) -> tuple[int, ...] | None:
        """As `ffn_widths`; None if `architecture` says anything else, or of other layers than this model's."""
        if any(site.layer >= self.num_layers for site, _ in architecture.items):
            return None
        widths = self.ffn_widths(architecture)
        return widths if self.architecture(widths) == architecture else None

    def kv_groups(self, architecture: Architecture) -> tuple[int, ...]:
        """[L] KV groups that `architecture` keeps; raises InputError if it names a layer beyond."""
        return architecture.units(Sublayer.ATTENTION, self.dense_units(Sublayer.ATTENTION))

    def __hash__(self) -> int:
        # Of what names it: a hash over thousands of tensors would cost more than what it is looked up for.
        return hash(self.fingerprint)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the inverse of `from_dict`. What is cut of a tensor follows from its name."""
        document = asdict(self)
        document["tensors"] = [{"name": t.name, "shape": list(t.shape), "dtype": t.dtype} for t in self.tensors]
        return document

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "ModelAnatomy":
        layers = tuple(DecoderLayer(**layer) for layer in data["layers"])
        headers = [(x["name"], tuple(x["shape"]), x["dtype"]) for x in data["tensors"]]
        tensors = tensor_specs(headers, layers, data["text_model_type"])
        return cls(**{**data, "layers": layers, "tensors": tensors})
