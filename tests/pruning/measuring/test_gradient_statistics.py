"""LLM-Pruner's importance, against gradients of the plain model's own loss."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pruning.checkpoints.loading import load_model, load_processor
from pruning.data.batches import Batch, make_batches
from pruning.data.conversations import Conversation
from pruning.measuring.gradient_statistics import measure_gradients


@pytest.fixture
def batches(checkpoint: Path, conversations: list[Conversation]) -> list[Batch]:
    return make_batches(conversations, load_processor(checkpoint), batch_size=4)


def test_equals_weight_times_gradient_of_the_whole_models_loss(checkpoint: Path, batches: list[Batch]) -> None:
    model = load_model(checkpoint)
    arrays = measure_gradients(model, batches)
    losses = []
    for batch in batches:
        logits = model(**batch.inputs).logits
        for span in batch.spans:
            targets = batch.inputs["input_ids"][span.row, span.start : span.stop]
            losses.append(
                nn.functional.cross_entropy(logits[span.row, span.start - 1 : span.stop - 1], targets, reduction="none")
            )
    torch.autograd.backward(torch.cat(losses).mean())
    for index, layer in enumerate(model.get_decoder().layers):
        gate, up, down = (
            (linear.weight * linear.weight.grad).abs().detach()
            for linear in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj)
        )
        expected = gate.sum(dim=1) + up.sum(dim=1) + down.sum(dim=0)
        assert float(expected.min()) > 0
        np.testing.assert_allclose(arrays[f"layers.{index}.ffn_taylor"], expected.numpy(), rtol=1e-3, atol=1e-9)


def test_the_model_is_left_as_it_was(checkpoint: Path, batches: list[Batch]) -> None:
    model = load_model(checkpoint)
    frozen = model.get_decoder().layers[0].mlp.gate_proj.weight
    frozen.requires_grad_(False)
    kept = model.get_output_embeddings().weight
    kept.grad = torch.ones_like(kept)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measure_gradients(model, batches)
    assert not frozen.requires_grad
    assert all(p.requires_grad for p in model.parameters() if p is not frozen)
    assert torch.equal(kept.grad, torch.ones_like(kept))
    assert all(p.grad is None for p in model.parameters() if p is not kept)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_gradients_are_gone_when_measuring_breaks_off(checkpoint: Path, batches: list[Batch]) -> None:
    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    model = load_model(checkpoint)
    with pytest.raises(KeyboardInterrupt):
        measure_gradients(model, batches, on_batch=stop)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_only_ffn_weights_get_gradients(checkpoint: Path, batches: list[Batch]) -> None:
    """Half-way through, so that the memory which is promised is what is used."""
    model = load_model(checkpoint)
    with_gradient: set[str] = set()

    def note(_done: int, _total: int) -> None:
        with_gradient.update(name for name, p in model.named_parameters() if p.grad is not None)

    measure_gradients(model, batches, on_batch=note)
    assert len(with_gradient) == 4 * 3
    assert all(".mlp." in name and "vision" not in name for name in with_gradient)


def test_importance_does_not_depend_on_the_batching(
    checkpoint: Path, conversations: list[Conversation], batches: list[Batch]
) -> None:
    model = load_model(checkpoint)
    one_by_one = measure_gradients(model, make_batches(conversations, load_processor(checkpoint), batch_size=1))
    for name, array in measure_gradients(model, batches).items():
        np.testing.assert_allclose(one_by_one[name], array, rtol=1e-3)
