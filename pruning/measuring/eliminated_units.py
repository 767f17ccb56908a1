"""The order in which every layer of a model loses its units, from its second-order statistics.

What is found of a layer is kept beside them, so that a run that is killed goes on.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.decoder_layer import DecoderLayer
from pruning.anatomy.families import FAMILIES, Family
from pruning.arrays import FloatArray
from pruning.cutting.least_squares import input_sizes, solve_with_chosen_damping
from pruning.forward.input_products import InputProducts, InputRole
from pruning.forward.layer_source import LayerSource
from pruning.measuring.elimination import channel_elimination, group_elimination
from pruning.measuring.second_order import SecondOrderStore

LEAST_DAMPING = 0.001
"""Where the held-out tokens ask for none, or for a plain cut."""

MOST_DAMPING = 1.0


@torch.inference_mode()
def eliminate(
    source: LayerSource,
    anatomy: ModelAnatomy,
    store: SecondOrderStore,
    *,
    on_layer: Callable[[int, int], None] | None = None,
) -> dict[str, FloatArray]:
    """The arrays of `StatisticsKind.SECOND_ORDER`; `store` has every layer's statistics.

    `on_layer(done, total)` is told of progress. Raises CheckpointError for a damaged file of the store, InputError if
    its disk is full.
    """
    family = FAMILIES[anatomy.text_model_type]
    arrays: dict[str, FloatArray] = {}
    for done, dense in enumerate(anatomy.layers, start=1):
        path = store.folder / f"layer-{dense.index:05d}.elimination.safetensors"
        if path.is_file():
            found = store.tensors(path)
        else:
            with source.layer(dense.index) as layer:
                found = _of_layer(layer, dense, family, store)
            store.put_tensors(path, found)
        arrays |= {f"layers.{dense.index}.{name}": tensor.numpy() for name, tensor in found.items()}
        if on_layer is not None:
            on_layer(done, anatomy.num_layers)
    return arrays


def _of_layer(
    layer: nn.Module, dense: DecoderLayer, family: Family, store: SecondOrderStore
) -> dict[str, torch.Tensor]:
    down: Any = layer.get_submodule(family.ffn_out)
    out: Any = layer.get_submodule(family.attention_out)
    products = store.get(dense.index, InputRole.FFN_OUT, down.weight.device)
    damping = _damping(down.weight, products)
    channels = channel_elimination(down.weight, products.fit.add_(products.held_out), damping)
    del products
    products = store.get(dense.index, InputRole.ATTENTION_OUT, out.weight.device)
    damping = _damping(out.weight, products)
    total = products.fit.add_(products.held_out)
    groups = group_elimination(out.weight, total, damping, num_groups=dense.num_kv_groups)
    return {"ffn_elimination": channels, "group_elimination": groups}


def _damping(weight: torch.Tensor, products: InputProducts) -> float:
    """What is best on held-out tokens when half of the inputs go: those that score least by norm times size."""
    scores = weight.double().norm(dim=0) * input_sizes(products.fit)
    kept = scores.argsort(descending=True)[: max(1, len(scores) // 2)].sort().values
    return min(MOST_DAMPING, max(LEAST_DAMPING, solve_with_chosen_damping(weight, products, kept).damping))
