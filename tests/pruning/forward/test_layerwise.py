"""The decoder a layer at a time gives the whole model's logits, whatever a family does between layers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pruning.anatomy.decoder_view import decoder_view
from pruning.data.batches import Batch, make_batches
from pruning.data.conversations import Conversation
from pruning.errors import UnsupportedModelError
from pruning.forward.decoder_inputs import decoder_inputs
from pruning.forward.layerwise import LayerCalls, record_layer_calls
from pruning.measuring.answer_loss import num_answer_tokens, summed_answer_loss
from pruning.measuring.gradient_statistics import measure_gradients
from pruning.measuring.zeroth_order_statistics import measure_zeroth_order
from tests.pruning.cut_models import logits_of
from tests.tiny_models import IMAGE_FAMILIES, tiny_model, tiny_processor, with_pictures


@torch.inference_mode()
def logits_by_layers(family: str, calls: LayerCalls) -> torch.Tensor:
    view = decoder_view(tiny_model(family))
    hidden = calls.hidden
    for index, layer in enumerate(view.layers):
        hidden = calls.through(index, layer, hidden)
    return view.logits(view.final_norm(hidden))


def calls_of(family: str, conversations: list[Conversation]) -> tuple[LayerCalls, torch.Tensor]:
    """How the decoder is called on one batch with pictures, and the model's own logits."""
    model = tiny_model(family)
    (batch,) = make_batches(conversations, tiny_processor(), batch_size=8)
    batch = with_pictures(family, batch)
    (inputs,) = decoder_inputs(model, [batch])
    return record_layer_calls(decoder_view(model), inputs), logits_of(model, batch.inputs)


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_layers_one_after_the_other_are_the_model(family: str, conversations: list[Conversation]) -> None:
    calls, logits = calls_of(family, conversations)
    torch.testing.assert_close(logits_by_layers(family, calls), logits.float(), rtol=0, atol=1e-6)


def test_visual_features_are_added_after_the_first_layers(conversations: list[Conversation]) -> None:
    calls, logits = calls_of("qwen3-vl", conversations)
    assert [x.values.shape for x in calls.features] == [(20, 32), (20, 32)]  # five pictures of four tokens
    without = logits_by_layers("qwen3-vl", replace(calls, features=calls.features[:1]))
    assert float((without - logits).abs().max()) > 1e-4
    hidden = torch.zeros_like(calls.hidden)
    added = calls.features[0].added_to(hidden)
    assert torch.equal(added[calls.features[0].tokens], calls.features[0].values)
    assert not hidden.any()


def test_features_that_are_not_told_are_noticed(conversations: list[Conversation]) -> None:
    """A decoder that adds something of its own between layers is refused, not scored wrongly."""
    model = tiny_model("qwen3-vl")
    (inputs,) = decoder_inputs(model, with_batches("qwen3-vl", conversations))
    view = decoder_view(model)
    told = model.get_decoder().forward

    def forward(*args: object, **kwargs: object) -> object:
        return told(*args, **kwargs, **hidden)

    hidden = {name: inputs.pop(name) for name in ("visual_pos_masks", "deepstack_visual_embeds")}
    model.get_decoder().forward = forward
    with pytest.raises(UnsupportedModelError, match=r"layers \[1, 2\]"):
        record_layer_calls(view, inputs)


def with_batches(family: str, conversations: list[Conversation]) -> list[Batch]:
    return [with_pictures(family, batch) for batch in make_batches(conversations, tiny_processor(), batch_size=8)]


@pytest.mark.parametrize(
    ("family", "causal"),
    [("llava-llama", True), ("gemma3", True), ("paligemma", False), ("paligemma2", False), ("llava-phi", True)],
)
def test_attention_that_is_not_causal_by_itself(family: str, causal: bool) -> None:
    assert decoder_view(tiny_model(family)).is_causal is causal


@pytest.mark.parametrize("family", ["qwen3-vl", "paligemma2", "gemma3", "llava-phi", "llava-phi3"])
def test_gradients_are_those_of_the_whole_model(family: str, conversations: list[Conversation]) -> None:
    model, (batch,) = tiny_model(family), with_batches(family, conversations)
    found = measure_gradients(model, [batch])
    view = decoder_view(model)
    weights = [x.weight for x in [*view.in_projections(1), view.out_projection(1)]]
    hidden = model.model(**batch.inputs).last_hidden_state
    loss = summed_answer_loss(view, hidden, batch) / num_answer_tokens([batch])
    *into, out = (
        weight * gradient for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True)
    )
    expected = out.abs().sum(dim=0)
    for rows in into:
        expected = expected + rows.abs().sum(dim=1).view(-1, 48).sum(dim=0)
    np.testing.assert_allclose(found["layers.1.ffn_taylor"], expected.detach(), rtol=1e-3)


@pytest.mark.parametrize("family", ["qwen3-vl", "paligemma2", "llava-phi3"])
def test_zeroth_order_scores_come_from_every_layer(family: str, conversations: list[Conversation]) -> None:
    scores = measure_zeroth_order(tiny_model(family), with_batches(family, conversations), seed=0)["ffn_zeroth_order"]
    assert scores.shape == (4,)
    assert np.isfinite(scores).all()
    assert (scores > 0).all()
