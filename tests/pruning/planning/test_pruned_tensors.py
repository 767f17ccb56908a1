"""What is left of a checkpoint, held against the parameters of a model, cut and taken out by names written by hand."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from pruning.anatomy.families import FAMILIES
from pruning.checkpoints.anatomy_reader import anatomy_of
from pruning.checkpoints.safetensors_layout import tensor_bytes
from pruning.planning.added_biases import pruned_tensors
from tests.tiny_models import tiny_model

BEFORE_EACH = (["input_layernorm"], ["post_attention_layernorm"])
AROUND_EACH = (
    ["input_layernorm", "post_attention_layernorm"],
    ["pre_feedforward_layernorm", "post_feedforward_layernorm"],
)
ONE_FOR_BOTH: tuple[list[str], list[str]] = ([], [])

NORMS = {
    "llava-llama-biases": BEFORE_EACH,
    "mistral3": BEFORE_EACH,
    "qwen2": BEFORE_EACH,
    "qwen2-vl": BEFORE_EACH,
    "qwen2.5-vl": BEFORE_EACH,
    "internvl-qwen3": BEFORE_EACH,
    "qwen3-vl": BEFORE_EACH,
    "llava-phi3": BEFORE_EACH,
    "paligemma": BEFORE_EACH,
    "paligemma2": AROUND_EACH,
    "gemma3": AROUND_EACH,
    "phi": ONE_FOR_BOTH,
}
"""The norms that go with attention, and with the FFN, as the models of transformers call them. A model a family."""

BIASED = ("llava-llama-biases", "phi")
"""Those whose down projections have biases."""

CHANNEL_ROWS, CHANNEL_COLUMNS = ("gate_proj", "up_proj", "gate_up_proj", "fc1"), ("down_proj", "fc2")
HEAD_ROWS, HEAD_COLUMNS = ("q_proj", "k_proj", "v_proj", "qkv_proj"), ("o_proj", "dense")
WIDTHS = (48, 20, 8, 0)


def by_hand(model: PreTrainedModel, kept: Sequence[tuple[int, int]], family: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's parameters when each layer keeps so many of 48 channels, and of its KV groups."""
    attention_norms, ffn_norms = NORMS[family]
    text = model.config.get_text_config(decoder=True)
    groups = text.num_key_value_heads or text.num_attention_heads
    layers = {id(x): i for i, layer in enumerate(model.get_decoder().layers) for x in layer.parameters()}
    shapes = {}
    for name, parameter in model.named_parameters():
        shape = list(parameter.shape)
        if id(parameter) in layers:
            channels, heads = (Fraction(x, y) for x, y in zip(kept[layers[id(parameter)]], (48, groups), strict=True))
            module, linear = name.split(".")[-3:-1]
            if (channels == 0 and "mlp" in name) or (heads == 0 and "self_attn" in name):
                continue
            if (channels == 0 and linear in ffn_norms) or (heads == 0 and linear in attention_norms):
                continue
            for axis, names, share in (
                (0, CHANNEL_ROWS, channels),
                (0, HEAD_ROWS, heads),
                (1, CHANNEL_COLUMNS, channels),
                (1, HEAD_COLUMNS, heads),
            ):
                if linear in names and axis < len(shape):
                    assert module in ("mlp", "self_attn")
                    shape[axis] = int(shape[axis] * share)
        shapes[name] = tuple(shape)
    return shapes


@pytest.mark.parametrize("family", NORMS)
def test_tensors_are_those_of_a_model_without_what_is_cut_and_skipped(family: str) -> None:
    with torch.device("meta"):
        model = tiny_model(family)
    model.get_decoder().layers.to(torch.bfloat16)
    anatomy = anatomy_of(model)
    num_bytes = {name: x.element_size() for name, x in model.named_parameters()}
    rng, groups = np.random.default_rng(0), anatomy.layers[0].num_kv_groups
    for _ in range(50):
        kept = [(int(rng.choice(WIDTHS)), int(rng.integers(groups + 1))) for _ in anatomy.layers]
        expected = by_hand(model, kept, family)
        widths, kv_groups = zip(*kept, strict=True)
        architecture = anatomy.architecture(widths, kv_groups)
        found = pruned_tensors(anatomy, architecture, compensates=False)
        assert {t.name: t.shape for t in found} == expected
        numel = {name: math.prod(shape) for name, shape in expected.items()}
        assert sum(math.prod(t.shape) for t in found) == sum(numel.values())
        assert sum(tensor_bytes(t.shape, t.dtype) for t in found) == sum(n * num_bytes[x] for x, n in numel.items())

        # Compensation adds a bias to what is cut, not to what is skipped.
        more = {t.name: t.shape for t in pruned_tensors(anatomy, architecture, compensates=True)}
        added = more.keys() - expected.keys()
        assert {name: more[name] for name in expected} == expected
        assert len(added) == (0 if family in BIASED else sum(0 < width < 48 for width in widths))
        assert all(name.endswith("mlp.down_proj.bias") and more[name] == (32,) for name in added)


def test_every_row_of_the_table_is_counted() -> None:
    assert {anatomy_of(tiny_model(family)).text_model_type for family in NORMS} == set(FAMILIES)
