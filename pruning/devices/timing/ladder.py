"""A model to take times on: every layer has another FFN width, so one forward pass times the whole ladder.

All rungs meet the same conditions that way: the same input, the same drift of the machine's clock, caches as cold as in
a real model. Weights are random: time does not depend on them.

Letters: L layers of the model, N layers of the ladder model, W rungs.
"""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.decoder_layer import architecture_of
from pruning.anatomy.dtypes import DTYPE_BYTES
from pruning.anatomy.families import family_of
from pruning.anatomy.model_class import model_class
from pruning.checkpoints.anatomy_reader import layer_shapes
from pruning.checkpoints.resizing import resize_model

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

NUM_RUNGS = 9
SMALLEST_WIDTH = 8
COLD_BYTES = 2**30
"""Weights of that size are never found in a processor's cache by the next pass."""


def ladder_widths(ffn_width: int) -> tuple[int, ...]:
    """The rungs of a dense width: 8 channels, then eighths of it rounded down to multiples of 8, then all of it."""
    step = SMALLEST_WIDTH
    eighths = (ffn_width * k // (NUM_RUNGS - 1) // step * step for k in range(1, NUM_RUNGS - 1))
    return tuple(sorted({min(step, ffn_width), *(w for w in eighths if w > 0), ffn_width}))


@dataclass(frozen=True)
class LadderPlan:
    """How large a ladder model is: told before it is built.

    Attributes:
        widths: FFN width of each layer of it, [N]. The first layer only warms up: it meets what the embedding left in
            the caches, not what a layer does.
        weight_bytes: of all its parameters; more than that for Idefics2, whose projector, which is not timed, takes its
            width from the text config and gets the smallest.
    """

    widths: tuple[int, ...]
    weight_bytes: int

    @classmethod
    def of(cls, anatomy: ModelAnatomy) -> "LadderPlan":
        """Every rung once, and again until no cache holds the model or it has as many layers as the real one.

        Rungs alternate between wide and narrow, so that neighbours in the ladder are no neighbours in time.
        """
        layer = max(anatomy.layers, key=lambda x: x.ffn_width)
        rungs = ladder_widths(layer.ffn_width)
        order = [*rungs[::2], *rungs[1::2]]
        element = DTYPE_BYTES[anatomy.dtype]
        outside = anatomy.total_parameters - anatomy.decoder_parameters
        others = layer.parameters - layer.ffn_parameters
        once = sum(others + width * layer.ffn_parameters_per_channel for width in order)
        first = others + rungs[0] * layer.ffn_parameters_per_channel
        rounds = 1
        while rounds * once * element < COLD_BYTES and rounds * len(order) < anatomy.num_layers:
            rounds += 1
        return cls((rungs[0], *(order * rounds)), (first + rounds * once + outside) * element)


def build_ladder_model(
    config: "PreTrainedConfig", plan: LadderPlan, *, dtype: torch.dtype, device: torch.device
) -> "PreTrainedModel":
    """A model of `config`'s classes whose layers have `plan.widths`, with random weights.

    Layers that attend to a window are built to attend to everything, unless all of the model's do: their time is then
    an upper bound.
    """
    config = copy.deepcopy(config)
    _shrink(config.get_text_config(decoder=True), num_layers=len(plan.widths))
    model = _uninitialised(model_class(config), config, dtype, device)
    resize_model(model, architecture_of(layer_shapes(config), plan.widths))
    return _randomised(model)


def random_weights(
    kind: "type[PreTrainedModel]", config: "PreTrainedConfig", dtype: torch.dtype, device: torch.device
) -> "PreTrainedModel":
    """A model of `config` with random weights, quicker than its own initialisation."""
    return _randomised(_uninitialised(kind, config, dtype, device))


def _uninitialised(
    kind: "type[PreTrainedModel]", config: "PreTrainedConfig", dtype: torch.dtype, device: torch.device
) -> "PreTrainedModel":
    from transformers.initialization import no_init_weights

    with no_init_weights(), device:
        model: PreTrainedModel = kind._from_config(config, dtype=dtype)
    model.tie_weights()  # left out above, with the initialisation
    return model


@torch.no_grad()
def _randomised(model: "PreTrainedModel") -> "PreTrainedModel":
    generator = torch.Generator(model.device).manual_seed(0)
    for parameter in model.parameters():
        # Vectors are gains of norms and biases; small weights keep every activation finite in half precision.
        parameter.fill_(1.0) if parameter.dim() < 2 else parameter.normal_(std=0.02, generator=generator)
    return model.eval()


def _shrink(text: Any, *, num_layers: int) -> None:
    """Make the text config that of `num_layers` layers with the narrowest FFN, which is resized after building."""
    text.num_hidden_layers = num_layers
    setattr(text, family_of(text).width_attribute, SMALLEST_WIDTH)
    kinds = set(getattr(text, "layer_types", None) or ())
    if kinds:
        text.layer_types = [kinds.pop() if len(kinds) == 1 else "full_attention"] * num_layers
