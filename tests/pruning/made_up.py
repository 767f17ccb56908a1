"""Anatomies and statistics that need no model."""

import numpy as np

from pruning.allocators.allocation import Allocation
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.decoder_layer import DecoderLayer
from pruning.measuring.statistics import ModelStatistics, StatisticsKind
from pruning.planning.ffn_spaces import ffn_widths
from pruning.planning.limits import Limits
from pruning.planning.prices import ffn_parameters


def made_up_anatomy(
    widths: list[int], *, per_channel: int = 30, other: int = 1000, num_heads: int = 4, num_kv_groups: int = 2
) -> ModelAnatomy:
    """A decoder with these FFN widths; each layer has `other` parameters besides its FFN."""
    layers = tuple(
        DecoderLayer(
            index=i,
            ffn_width=w,
            num_heads=num_heads,
            num_kv_groups=num_kv_groups,
            head_dim=8,
            ffn_parameters_per_channel=per_channel,
            parameters=w * per_channel + other,
        )
        for i, w in enumerate(widths)
    )
    return ModelAnatomy(
        model_type="llava",
        text_model_type="llama",
        hidden_size=10,
        vocab_size=100,
        layers=layers,
        total_parameters=sum(x.parameters for x in layers) + 5000,
        dtype="F32",
        fingerprint="0" * 64,
    )


def at_most(anatomy: ModelAnatomy, budget: int, *, round_to: int = 8, compensates: bool = False) -> Limits:
    """The limit of `budget` FFN parameters."""
    space = ffn_widths(anatomy, round_to=round_to)
    return Limits(space, (ffn_parameters(anatomy, compensates=compensates).limit(space, budget),))


def widths_of(anatomy: ModelAnatomy, allocation: Allocation) -> list[int]:
    """FFN widths [L]."""
    return list(anatomy.ffn_widths(allocation.architecture))


def made_up_statistics(anatomy: ModelAnatomy, kind: StatisticsKind, *, seed: int = 0) -> ModelStatistics:
    """Positive random numbers of the right names and shapes."""
    rng = np.random.default_rng(seed)
    per_channel = {
        StatisticsKind.ACTIVATIONS: ("ffn_mean", "ffn_second_moment", "ffn_variance", "down_mean_abs", "down_norm"),
        StatisticsKind.GRADIENTS: ("ffn_taylor",),
        StatisticsKind.ZEROTH_ORDER: (),
        StatisticsKind.SECOND_ORDER: ("ffn_elimination",),
    }
    per_layer = {
        StatisticsKind.ACTIVATIONS: ("outlier_ratio", "block_influence"),
        StatisticsKind.GRADIENTS: (),
        StatisticsKind.ZEROTH_ORDER: ("ffn_zeroth_order",),
        StatisticsKind.SECOND_ORDER: (),
    }
    arrays = {f"layers.{x.index}.{n}": rng.random(x.ffn_width) for n in per_channel[kind] for x in anatomy.layers}
    arrays |= {name: rng.random(anatomy.num_layers) for name in per_layer[kind]}
    if kind is StatisticsKind.SECOND_ORDER:
        arrays |= {f"layers.{x.index}.group_elimination": rng.random(x.num_kv_groups) for x in anatomy.layers}
    return ModelStatistics(kind, anatomy.fingerprint, arrays)
