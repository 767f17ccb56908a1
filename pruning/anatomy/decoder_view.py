"""The decoder inside a loaded model: its layers and the parts of them that pruning touches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from pruning.anatomy.architecture import Site, Sublayer
from pruning.anatomy.families import Family, family_of
from pruning.anatomy.skipped_modules import SkippedAttention, SkippedFfn
from pruning.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class DecoderView:
    """The parts of a model that pruning touches.

    Attributes:
        decoder: the language model's trunk (embeddings in, final hidden states out).
        layers: its layers, in order.
        final_norm: what the trunk does after its last layer.
        head: the output head.
        family: its row of the family table.
        softcap: bound of the logits, c tanh(x / c) (Gemma 2); None: they are the head's.
    """

    decoder: nn.Module
    layers: tuple[nn.Module, ...]
    final_norm: nn.Module
    head: nn.Module
    family: Family
    softcap: float | None = None

    def projection(self, layer: int, name: str) -> nn.Linear:
        """The linear layer `name`, as the family's row calls it, of a decoder layer.

        Raises UnsupportedModelError if something else is in its place; so does all that follows.
        """
        return _linear(self.layers[layer].get_submodule(name), f"{name} of layer {layer}")

    def linear_head(self) -> nn.Linear:
        """The head, as a layer whose weight is the vocabulary's [V, D]."""
        return _linear(self.head, "the output head")

    def out_projection(self, layer: int) -> nn.Linear:
        """The linear layer whose input columns are the FFN channels."""
        return self.projection(layer, self.family.ffn_out)

    def in_projections(self, layer: int) -> list[nn.Linear]:
        """The linear layers whose output rows are the FFN channels."""
        return [self.projection(layer, name) for name in self.family.ffn_in]

    def attention_out(self, layer: int) -> nn.Linear:
        """The linear layer whose input columns are the outputs of the query heads."""
        return self.projection(layer, self.family.attention_out)

    @property
    def is_causal(self) -> bool:
        """Whether attention without a mask is causal: not where a prefix sees all of itself (PaliGemma)."""
        attentions = [layer.get_submodule(self.family.attention) for layer in self.layers]
        return all(getattr(attention, "is_causal", True) for attention in attentions)

    def ffn_width(self, layer: int) -> int:
        """The FFN channels of `layer` now; 0 where it is skipped."""
        return 0 if self.is_skipped(Site(layer, Sublayer.FFN)) else self.out_projection(layer).in_features

    def stand_ins(self, site: Site) -> dict[str, nn.Module]:
        """By its name in the layer, what is in the place of a sub-layer that is skipped, and of its norms: those before
        and after it give back what they take, and it adds nothing, however a family orders them."""
        is_ffn = site.sublayer is Sublayer.FFN
        own = SkippedFfn() if is_ffn else SkippedAttention(site.layer)
        norms = {name: nn.Identity() for name in self.family.norms(site.sublayer)}
        return {self.family.ffn if is_ffn else self.family.attention: own, **norms}

    def skip(self, site: Site) -> None:
        """Take a sub-layer and its norms out of the model."""
        for name, module in self.stand_ins(site).items():
            self.layers[site.layer].set_submodule(name, module, strict=True)

    def is_skipped(self, site: Site) -> bool:
        """Whether nothing is left of a sub-layer."""
        name = self.family.ffn if site.sublayer is Sublayer.FFN else self.family.attention
        return isinstance(self.layers[site.layer].get_submodule(name), SkippedFfn | SkippedAttention)

    def channel_rows(self, layer: int, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Views [W, ...] of `tensors` [rows, ...], rows of in-projections: several of each that is fused."""
        width = self.ffn_width(layer)
        return [part for tensor in tensors for part in torch.split(tensor, width)]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [..., V] of final hidden states [..., D], in float32."""
        logits: torch.Tensor = self.head(hidden).float()
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def decoder_view(model: "PreTrainedModel") -> DecoderView:
    """Find decoder and head; raises UnsupportedModelError for a family outside the table."""
    text = model.config.get_text_config(decoder=True)
    family = family_of(text)
    decoder = model.get_decoder()
    return DecoderView(
        decoder,
        tuple(decoder.layers),
        getattr(decoder, family.final_norm),
        model.get_output_embeddings(),
        family,
        getattr(text, "final_logit_softcapping", None),
    )


def _linear(module: nn.Module, where: str) -> nn.Linear:
    """`module`, unless a library put something else in its place: an adapter, a quantised layer."""
    if not isinstance(module, nn.Linear):
        raise UnsupportedModelError(
            "projections and output head must be torch's linear layers",
            values=f"{where} is a {type(module).__name__}",
            remedy="Merge adapters into the weights, and load the model unquantised",
        )
    return module
