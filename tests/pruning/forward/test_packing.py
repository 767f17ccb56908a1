"""Sequences in one row: how they are shared out, and that attention keeps them apart."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pruning.anatomy.decoder_view import DecoderView, decoder_view
from pruning.checkpoints.anatomy_reader import anatomy_of
from pruning.checkpoints.loading import load_model
from pruning.data.batches import Batch
from pruning.data.conversations import Conversation
from pruning.forward.decoder_inputs import decoder_inputs
from pruning.forward.layerwise import LayerCalls, record_layer_calls
from pruning.forward.packing import Place, pack, packed_attention, shared_out
from pruning.measuring.evaluation import ConfigurationEvaluator
from tests.pruning.cut_models import WIDTHS, random_ranking
from tests.pruning.measuring.test_evaluation_families import batches_for
from tests.tiny_models import tiny_model


def places(*lengths: int) -> list[Place]:
    return [Place(0, row, length) for row, length in enumerate(lengths)]


def test_sequences_are_shared_out_evenly_and_equal_lengths_are_neighbours() -> None:
    rows = shared_out(places(3, 9, 5, 5, 2, 8), row_tokens=16)
    assert [[place.length for place in row] for row in rows] == [[9, 5, 2], [8, 5, 3]]


@pytest.mark.parametrize(
    ("lengths", "num_rows"),
    [([700], 1), ([4, 4], 2), ([200, 200, 200], 2), ([512] * 6, 6), ([512] * 7, 7), ([100] * 21, 6)],
)
def test_rows_do_not_depend_on_the_machine(lengths: list[int], num_rows: int) -> None:
    """As many as rows of 512 tokens need, and an even number where there are enough sequences."""
    rows = shared_out(places(*lengths))
    assert len(rows) == num_rows
    assert sorted(place.length for row in rows for place in row) == sorted(lengths)


def recorded(family: str, conversations: list[Conversation]) -> tuple[DecoderView, list[Batch], list[LayerCalls]]:
    model = tiny_model(family)
    view, batches = decoder_view(model), batches_for(family, conversations)
    return view, batches, [record_layer_calls(view, inputs) for inputs in decoder_inputs(model, batches)]


@torch.inference_mode()
@pytest.mark.parametrize(
    "family", ["llava-llama", "llava-mistral-window", "qwen2.5-vl", "qwen3-vl", "paligemma", "phi3"]
)
def test_a_sequence_in_a_row_is_what_it_is_alone(family: str, conversations: list[Conversation]) -> None:
    view, batches, calls = recorded(family, conversations)
    lengths = [batch.inputs["attention_mask"].sum(dim=1).tolist() for batch in batches]
    chosen = [(0, 2), (1, 0), (0, 0), (1, 1)]
    packed = pack(view, calls, [Place(b, r, lengths[b][r]) for b, r in chosen])
    hidden = packed.hidden
    with packed_attention(view):
        for index, layer in enumerate(view.layers):
            hidden = packed.through(index, layer, hidden)
    hidden = view.final_norm(hidden)
    for (batch, row), start in packed.starts.items():
        length = lengths[batch][row]
        expected = calls[batch].last_hidden[row, :length]
        assert torch.allclose(hidden[0, start : start + length], expected, atol=1e-5)


def test_masks_that_say_causal_are_left_to_the_attention_kernel(conversations: list[Conversation]) -> None:
    view, batches, (calls, *_) = recorded("llava-llama", conversations)
    lengths = batches[0].inputs["attention_mask"].sum(dim=1).tolist()
    everything = [Place(0, row, length) for row, length in enumerate(lengths)]
    assert min(lengths) < max(lengths)
    packed = pack(view, [calls], everything)
    assert all(run.mask is None for runs in packed.runs for run in runs)
    window = calls.arguments[0]["attention_mask"].clone()
    window[0, :, lengths[0] - 1, 0] = False  # a token that does not see all before it
    windowed = tuple({**kwargs, "attention_mask": window} for kwargs in calls.arguments)
    packed = pack(view, [replace(calls, arguments=windowed)], everything)
    assert [run.mask is None for run in packed.runs[0]].count(False) == 1


def test_layers_share_what_they_are_called_with(conversations: list[Conversation]) -> None:
    """Rotary embeddings are the same tensors for all layers: copies for each would be as large as hidden states."""
    view, _, calls = recorded("llava-llama", conversations)
    packed = pack(view, calls, [Place(0, 0, 5), Place(1, 1, 6)])
    first, last = (packed.arguments[layer]["position_embeddings"][0] for layer in (0, -1))
    assert first is last


def test_attention_is_as_before_after_rows(checkpoint: Path) -> None:
    model = load_model(checkpoint)
    with pytest.raises(KeyboardInterrupt), packed_attention(decoder_view(model)):
        raise KeyboardInterrupt
    assert model.config.get_text_config(decoder=True)._attn_implementation == "sdpa"


def test_two_evaluators_may_share_a_config() -> None:
    view = decoder_view(tiny_model("llama"))
    config: Any = view.decoder.config
    first, second = packed_attention(view), packed_attention(view)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert config._attn_implementation != "sdpa"  # the second one is at work
    second.__exit__(None, None, None)
    assert config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", ["paligemma", "llava-mistral-window"])
def test_rows_that_see_other_tokens_are_refused(
    family: str, conversations: list[Conversation], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As if packing forgot what a mask says: the same numbers, from padded batches."""
    ranking = random_ranking(anatomy_of(tiny_model(family)))
    batches = batches_for(family, conversations)
    expected = ConfigurationEvaluator(tiny_model(family), batches, ranking).evaluate(WIDTHS)
    assert caplog.text == ""
    monkeypatch.setattr("pruning.forward.packing._own_mask", lambda *_, **__: None)
    monkeypatch.setattr(DecoderView, "is_causal", True)
    found = ConfigurationEvaluator(tiny_model(family), batches, ranking).evaluate(WIDTHS)
    assert "hidden states differ" in caplog.text
    assert found.kl == pytest.approx(expected.kl, rel=0.02, abs=5e-8)  # a KL of 1e-6 nats, known to rounding


def test_layers_that_take_something_else_are_left_padded(
    conversations: list[Conversation], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def other(*_: object) -> None:
        raise KeyError("position_bias")

    ranking = random_ranking(anatomy_of(tiny_model("llama")))
    batches = batches_for("llama", conversations)
    expected = ConfigurationEvaluator(tiny_model("llama"), batches, ranking).evaluate(WIDTHS)
    monkeypatch.setattr("pruning.forward.answer_rows.pack", other)
    found = ConfigurationEvaluator(tiny_model("llama"), batches, ranking).evaluate(WIDTHS)
    assert "position_bias" in caplog.text
    assert found.kl == pytest.approx(expected.kl, rel=0.02, abs=5e-8)  # a KL of 1e-6 nats, known to rounding
