"""One forward pass, against the same numbers from activations that were kept whole."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.arrays import FloatArray
from pruning.checkpoints.anatomy_reader import anatomy_of
from pruning.checkpoints.loading import load_model, load_processor
from pruning.data.batches import Batch, make_batches
from pruning.data.conversations import Conversation
from pruning.measuring.activation_statistics import outlier_ratio
from pruning.measuring.statistics import StatisticsKind, measure_statistics
from tests.tiny_models import BUILDERS, tiny_model


def kept_whole(model: PreTrainedModel, batches: list[Batch]) -> dict[str, torch.Tensor]:
    """Every linear's input [N, in] and every layer's input and output [N, D], of real tokens, one row at a time."""
    seen: dict[str, list[torch.Tensor]] = {}

    def keep(name: str, x: torch.Tensor) -> None:
        seen.setdefault(name, []).append(x[0].double())

    def on_linear(name: str) -> Any:
        return lambda _module, args: keep(name, args[0])

    def on_layer(index: int) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            keep(f"{index}.before", args[0])
            keep(f"{index}.after", output)

        return hook

    handles = []
    for index, layer in enumerate(model.get_decoder().layers):
        handles.append(layer.register_forward_hook(on_layer(index)))
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear):
                handles.append(module.register_forward_pre_hook(on_linear(f"{index}.{name}")))
    with torch.inference_mode():
        for batch in batches:
            model(**batch.inputs)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(rows) for name, rows in seen.items()}


def measured(model: PreTrainedModel, batches: list[Batch]) -> Mapping[str, FloatArray]:
    return measure_statistics(StatisticsKind.ACTIVATIONS, model, batches).arrays


@pytest.mark.parametrize("max_values", [2**22, 100])
def test_equals_the_obvious_computation(
    checkpoint: Path, conversations: list[Conversation], max_values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pruning.measuring.activation_statistics.MAX_FLOAT64_VALUES", max_values)
    monkeypatch.setattr("pruning.measuring.group_contributions.MAX_VALUES", max_values)
    model, processor = load_model(checkpoint), load_processor(checkpoint)
    with torch.no_grad():  # make some weights outliers, so that there are any
        for layer in model.get_decoder().layers:
            layer.mlp.up_proj.weight[:3] *= 20
    arrays = measured(model, make_batches(conversations, processor, batch_size=4))
    seen = kept_whole(model, make_batches(conversations, processor, batch_size=1))
    for index, layer in enumerate(model.get_decoder().layers):
        x, down = seen[f"{index}.mlp.down_proj"], layer.mlp.down_proj.weight.double().detach()
        z, out = seen[f"{index}.self_attn.o_proj"], layer.self_attn.o_proj.weight.double().detach()
        parts = torch.stack([z[:, :16] @ out[:, :16].T, z[:, 16:] @ out[:, 16:].T], dim=1)  # of two groups
        after = seen[f"{index}.before"] + parts.sum(dim=1)
        for name, expected in {
            "group_contribution": (parts.norm(dim=2) / after.norm(dim=1, keepdim=True)).square().mean(dim=0),
            "ffn_mean": x.mean(dim=0),
            "ffn_second_moment": x.square().mean(dim=0),
            "ffn_variance": x.var(dim=0),
            "down_mean_abs": down.abs().mean(dim=0),
            "down_norm": down.square().sum(dim=0).sqrt(),
            "attention_second_moment": z.square().mean(dim=0),
            "out_norm": out.square().sum(dim=0).sqrt(),
        }.items():
            np.testing.assert_allclose(
                arrays[f"layers.{index}.{name}"], expected.numpy(), rtol=1e-4, atol=1e-9, err_msg=name
            )
        cosine = nn.functional.cosine_similarity(seen[f"{index}.before"], seen[f"{index}.after"], dim=-1)
        assert arrays["block_influence"][index] == pytest.approx(float((1 - cosine).mean()), rel=1e-4)
        scores = torch.cat(
            [
                (module.weight.double().abs() * seen[f"{index}.{name}"].square().mean(dim=0).sqrt()).flatten()
                for name, module in layer.named_modules()
                if isinstance(module, nn.Linear)
            ]
        )
        outliers = int((scores > 5 * scores.mean()).sum())
        assert outliers > 0
        # A score within rounding of the threshold may fall on either side.
        assert arrays["outlier_ratio"][index] * len(scores) == pytest.approx(outliers, abs=1)


def test_a_small_variance_beside_a_large_mean_is_not_lost(checkpoint: Path, conversations: list[Conversation]) -> None:
    """Channel 0 is 1000 plus 0.01 x noise, which float32 squares do not tell from a constant."""
    model, processor = load_model(checkpoint), load_processor(checkpoint)
    layer = model.get_decoder().layers[0]
    layer.mlp.down_proj.register_forward_pre_hook(
        lambda _m, args: (torch.cat([1000 + 0.01 * args[0][..., :1].sign(), args[0][..., 1:]], dim=-1),)
    )
    arrays = measured(model, make_batches(conversations, processor, batch_size=2))
    seen = kept_whole(model, make_batches(conversations, processor, batch_size=1))["0.mlp.down_proj"]
    assert arrays["layers.0.ffn_mean"][0] == pytest.approx(float(seen[:, 0].mean()), rel=1e-9)
    assert arrays["layers.0.ffn_variance"][0] == pytest.approx(float(seen[:, 0].var()), rel=1e-6)


def test_outlier_ratio_worked_by_hand() -> None:
    # Scores 1 x 9 and 1 x 2 ... : nine of 1, one of 11: mean 2, threshold 5 x 2 = 10; one of ten is over it.
    weights = [(torch.tensor([[1.0, 1.0, 1.0, 1.0]]), torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.float64))]
    weights.append(
        (torch.tensor([[-1.0, 0.5], [1.0, 0.5], [1.0, -5.5]]), torch.tensor([1.0, 2.0], dtype=torch.float64))
    )
    assert outlier_ratio(weights) == 1 / 10
    assert outlier_ratio(weights, multiple=5.6) == 0.0
    assert outlier_ratio(weights, multiple=0.4) == 1.0


@pytest.mark.parametrize("family", BUILDERS)
def test_every_family_is_measured(family: str) -> None:
    model = tiny_model(family)
    ids = torch.randint(7, 100, (2, 9), generator=torch.Generator().manual_seed(0))
    batch = Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ())
    measure_statistics(StatisticsKind.ACTIVATIONS, model, [batch]).check(anatomy_of(model))
