"""The part of a model that is trained, and the model as it would be written."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from pruning.anatomy.decoder_view import decoder_view
from recovery.checks import no_projector
from recovery.lora import add_lora, merge_lora, merged_weight, updated_layers
from recovery.recipe import Mode, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PROJECTORS = ("multi_modal_projector", "connector", "visual.merger")
"""transformers' names: LLaVA's, InternVL's, PaliGemma's, Gemma's and Mistral's; Idefics' and SmolVLM's; Qwen-VL's."""
_DEEP = "visual.deepstack_merger_list"


def projectors_of(model: "PreTrainedModel") -> list[nn.Module]:
    """What carries the tower's features to the decoder; empty for a language model."""
    inner = getattr(model, "model", model)
    found = []
    for name in (*_PROJECTORS, _DEEP):
        try:
            found.append(inner.get_submodule(name))
        except AttributeError:
            continue
    return found


class Trained:
    """What `recipe` trains of `model`, which it prepares: gradients of that alone, in float32.

    Raises:
        InputError: a language model has no projector.
        MissingExtraError: LoRA without peft.
    """

    def __init__(self, model: "PreTrainedModel", recipe: Recipe) -> None:
        self.model, self.mode = model, recipe.mode
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        view = decoder_view(model)
        match recipe.mode:
            case Mode.PROJECTOR:
                modules = projectors_of(model)
                if not modules:
                    raise no_projector(str(model.config.model_type))
            case Mode.LORA:
                add_lora(model, recipe.rank, seed=recipe.seed)
                modules = []
            case _:
                modules = [*view.layers, view.final_norm, *projectors_of(model)]
        for module in modules:
            module.requires_grad_(True)
        self.parameters: dict[str, nn.Parameter] = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if recipe.is_checkpointed:
            _checkpoint_activations(model)

    @property
    def before_decoder(self) -> bool:
        """Whether anything before the decoder is trained."""
        inside = {id(parameter) for parameter in decoder_view(self.model).decoder.parameters()}
        return any(id(parameter) not in inside for parameter in self.parameters.values())

    @property
    def num_bytes(self) -> int:
        """Of what is trained."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self.parameters.values())

    @torch.no_grad()
    def put(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Take these weights, by their names."""
        for name, tensor in tensors:
            self.parameters[name].copy_(tensor)

    @contextmanager
    def as_written(self, dtype: torch.dtype) -> Iterator[None]:
        """In the block the model is what would be written: updates merged, weights rounded to the files' `dtype`."""
        changed: list[tuple[torch.Tensor, torch.Tensor]] = []

        def put(parameter: torch.Tensor, value: torch.Tensor) -> None:
            changed.append((parameter, parameter.data))
            parameter.data = value.to(dtype).to(parameter.dtype)

        layers = [layer for _, layer in updated_layers(self.model)] if self.mode is Mode.LORA else []
        try:
            with torch.no_grad():
                for layer in layers:
                    put(layer.get_base_layer().weight, merged_weight(layer))
                    layer.enable_adapters(False)
                if not layers and dtype != torch.float32:
                    for trained in self.parameters.values():
                        put(trained, trained.data)
            yield
        finally:
            for parameter, value in changed:
                parameter.data = value
            for layer in layers:
                layer.enable_adapters(True)

    def finish(self) -> "PreTrainedModel":
        """The model as transformers has it, updates merged; training is over."""
        if self.mode is Mode.LORA:
            merge_lora(self.model)
        self.model.eval().requires_grad_(True)
        return self.model


def _checkpoint_activations(model: "PreTrainedModel") -> None:
    """Decoder layers compute their activations anew in the backward pass.

    transformers does so in layers that are in training mode. Only the layers themselves are put into it: what is inside
    stays as it is, without dropout.
    """
    model.activation_checkpointing_enable({"use_reentrant": False})
    for layer in decoder_view(model).layers:
        layer.training = True
