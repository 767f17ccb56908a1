"""A model to take times on: every layer keeps something else, so one forward pass times the whole ladder.

The ladder goes from a layer that skips both halves, over more and more KV groups without an FFN, to whole attention
with wider and wider FFNs. So each rung keeps all that the rungs below it keep, and takes no less time.

All rungs meet the same conditions that way: the same input, the same drift of the machine's clock, caches as cold as in
a real model. Weights are random: time does not depend on them.

Letters: L layers of the model, N layers of the ladder model, R rungs.
"""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Option, Site, Sublayer
from pruning.anatomy.decoder_layer import DecoderLayer, architecture_of
from pruning.anatomy.dtypes import DTYPE_BYTES
from pruning.anatomy.families import family_of
from pruning.anatomy.model_class import model_class
from pruning.checkpoints.anatomy_reader import layer_shapes
from pruning.checkpoints.resizing import resize_model
from pruning.planning import prices

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

NUM_RUNGS = 9
SMALLEST_WIDTH = 8
COLD_BYTES = 2**30
"""Weights of that size are never found in a processor's cache by the next pass."""


class Rung(NamedTuple):
    """What a layer of the ladder keeps; 0 of either: that half is skipped."""

    kv_groups: int
    ffn_width: int


def ladder_widths(ffn_width: int) -> tuple[int, ...]:
    """FFN widths of the rungs: 8 channels, then eighths of the dense width rounded down to multiples of 8, then all."""
    return _eighths(ffn_width, SMALLEST_WIDTH)


def ladder_groups(kv_groups: int) -> tuple[int, ...]:
    """KV groups of the rungs: none, one, then eighths of the dense number rounded down, then all."""
    return (0, *_eighths(kv_groups, 1))


def _eighths(dense: int, step: int) -> tuple[int, ...]:
    eighths = (dense * k // (NUM_RUNGS - 1) // step * step for k in range(1, NUM_RUNGS - 1))
    return tuple(sorted({min(step, dense), *(units for units in eighths if units > 0), dense}))


def ladder_of(layer: DecoderLayer) -> tuple[Rung, ...]:
    """The rungs of a dense layer, ascending: [R]."""
    groups = ladder_groups(layer.num_kv_groups)
    widths = ladder_widths(layer.ffn_width)
    return (*(Rung(kept, 0) for kept in groups), *(Rung(groups[-1], width) for width in widths))


@dataclass(frozen=True)
class LadderPlan:
    """How large a ladder model is: told before it is built.

    Attributes:
        rungs: what each layer of it keeps, [N]. The first layer only warms up: it meets what the embedding left in the
            caches, not what a layer does.
        weight_bytes: of all its parameters; more than that for Idefics2, whose projector, which is not timed, takes its
            width from the text config and gets the smallest.
    """

    rungs: tuple[Rung, ...]
    weight_bytes: int

    @property
    def ladder(self) -> tuple[Rung, ...]:
        """Each rung once, ascending: [R]."""
        return tuple(sorted(set(self.rungs)))

    @classmethod
    def of(cls, anatomy: ModelAnatomy) -> "LadderPlan":
        """Every rung once, and again until no cache holds the model or it has as many layers as the real one.

        Rungs alternate between large and small, so that neighbours in the ladder are no neighbours in time.
        """
        layer = max(anatomy.layers, key=lambda x: x.ffn_width)
        ladder = ladder_of(layer)
        order = [*ladder[::2], *ladder[1::2]]
        first = min((rung for rung in ladder if rung.ffn_width), key=lambda rung: rung.ffn_width)
        price, dense = prices.parameters(anatomy), layer.parameters
        sites = [Site(layer.index, sublayer) for sublayer in (Sublayer.ATTENTION, Sublayer.FFN)]

        def parameters(rung: Rung) -> int:
            kept = zip(sites, rung, strict=True)
            gone = sum(price.of_dense[site] - price.cost_of(site, Option(units)) for site, units in kept)
            return dense - gone

        element = DTYPE_BYTES[anatomy.dtype]
        outside = anatomy.total_parameters - anatomy.decoder_parameters
        once, rounds = sum(parameters(rung) for rung in order), 1
        while rounds * once * element < COLD_BYTES and rounds * len(order) < anatomy.num_layers:
            rounds += 1
        return cls((first, *(order * rounds)), (parameters(first) + rounds * once + outside) * element)


def build_ladder_model(
    config: "PreTrainedConfig", plan: LadderPlan, *, dtype: torch.dtype, device: torch.device
) -> "PreTrainedModel":
    """A model of `config`'s classes whose layers keep `plan.rungs`, with random weights.

    Layers that attend to a window are built to attend to everything, unless all of the model's do: their time is then
    an upper bound.
    """
    config = copy.deepcopy(config)
    _shrink(config.get_text_config(decoder=True), num_layers=len(plan.rungs))
    model = _uninitialised(model_class(config), config, dtype, device)
    widths, groups = [rung.ffn_width for rung in plan.rungs], [rung.kv_groups for rung in plan.rungs]
    resize_model(model, architecture_of(layer_shapes(config), widths, groups))
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
