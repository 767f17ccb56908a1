"""Low-rank updates of the decoder's projections, by peft: each has the rank it can have, whatever its layer's size."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pruning.anatomy.decoder_view import decoder_view
from pruning.missing_packages import needing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

_NAME = "recovery"


def add_lora(model: "PreTrainedModel", rank: int, *, seed: int) -> None:
    """Put an update W + 2 B A beside every projection in the decoder layers; B is zero, so nothing changes.

    A is drawn by `seed`. peft reads the size of each layer from the layer, so pruned ones need nothing of their own; a
    rank above a layer's inputs or outputs would be waste, and is lowered there. LoRA: arXiv 2106.09685; its scale alpha
    over rank is 2 in every layer.

    Raises MissingExtraError if peft is not installed.
    """
    with needing("recover"):
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel

    view = decoder_view(model)
    layers = {id(module) for layer in view.layers for module in layer.modules() if isinstance(module, nn.Linear)}
    names = {name: module for name, module in model.named_modules() if id(module) in layers}
    ranks = {name: min(rank, *module.weight.shape) for name, module in names.items()}
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=list(names),
        rank_pattern={f"^{name}": own for name, own in ranks.items() if own != rank},
        alpha_pattern={f"^{name}": 2 * own for name, own in ranks.items() if own != rank},
        lora_dropout=0.0,
        bias="none",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LoraModel(model, {_NAME: config}, _NAME)


def updated_layers(model: nn.Module) -> "Iterator[tuple[str, Any]]":
    """Every layer that has an update, by its name."""
    from peft.tuners.lora import LoraLayer

    yield from ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))


@torch.no_grad()
def merged_weight(layer: Any) -> torch.Tensor:
    """The weight with its update."""
    merged: torch.Tensor = layer.get_base_layer().weight + layer.get_delta_weight(_NAME)
    return merged


@torch.no_grad()
def merge_lora(model: nn.Module) -> None:
    """Make the updates part of the weights; every layer is torch's linear one again."""
    for name, layer in list(updated_layers(model)):
        linear = layer.get_base_layer()
        linear.weight.copy_(merged_weight(layer))
        model.set_submodule(name, linear)
