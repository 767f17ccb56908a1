"""The shipped models, through the Auto classes alone, as a user would load them."""

import json
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from reference import DATA_DIR
from reference.batches import IGNORE, Encoder, pairs_of
from reference.blueprints import BLUEPRINTS, Blueprint, ModelName
from reference.card import render_card
from reference.dataset import sample_split
from reference.evaluate import accuracy, load_split
from reference.forward import answer_logits, decoder_of
from reference.tightness import channel_importance, widths

Messages = list[dict[str, Any]]


@pytest.fixture(scope="module", params=ModelName)
def blueprint(request: pytest.FixtureRequest) -> Blueprint:
    return BLUEPRINTS[request.param]


@pytest.fixture(scope="module")
def processor(blueprint: Blueprint) -> Any:
    return AutoProcessor.from_pretrained(blueprint.out / "model")


@pytest.fixture(scope="module")
def model(blueprint: Blueprint) -> Any:
    model = AutoModelForImageTextToText.from_pretrained(blueprint.out / "model").eval()
    assert model.dtype == blueprint.dtype  # as it is stored
    return model.float()


def messages_of(record: dict[str, Any]) -> Messages:
    roles = {"human": "user", "gpt": "assistant"}
    return [{"role": roles[turn["from"]], "content": turn["value"]} for turn in record["conversations"]]


def records(count: int) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads((DATA_DIR / "validation.json").read_text(encoding="utf-8"))
    return loaded[:count]


def test_every_rendering_is_a_prefix_of_the_next(processor: Any) -> None:
    messages = messages_of(records(1)[0])
    whole = [processor.apply_chat_template(messages[:i], add_generation_prompt=True) for i in range(1, len(messages))]
    for i, earlier in enumerate(whole, start=1):
        assert processor.apply_chat_template(messages[: i + 1]).startswith(earlier)
        assert processor.apply_chat_template(messages[: i + 1], add_generation_prompt=True).startswith(earlier)


def test_content_may_be_text_or_a_list_of_parts(processor: Any, blueprint: Blueprint) -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "Where is the 7?"}]
    as_list = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    as_text = processor.apply_chat_template(
        [{"role": "user", "content": "<image>\nWhere is the 7?"}], add_generation_prompt=True
    )
    assert (
        as_list
        == as_text
        == {
            ModelName.REFERENCE: "<|user|><image>\nWhere is the 7?<|assistant|>",
            ModelName.SECOND: "<bos><|user|><start_of_image>Where is the 7?<|assistant|>",
        }[blueprint.name]
    )


def test_answers_end_with_the_end_token(processor: Any, model: Any) -> None:
    rendered = processor.apply_chat_template(messages_of(records(1)[0])[:2])
    assert rendered.endswith(processor.tokenizer.eos_token)
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == processor.tokenizer.pad_token_id


def test_unknown_roles_are_refused(processor: Any) -> None:
    with pytest.raises(Exception, match="roles are user and assistant"):
        processor.apply_chat_template([{"role": "system", "content": "Be brief."}])


def test_encoder_and_pictures_equal_the_processor(processor: Any, blueprint: Blueprint) -> None:
    record = records(1)[0]
    conversations, pictures = sample_split("validation", 0, 1)
    ids, labels, _ = Encoder(processor.tokenizer, 256, blueprint.layout).encode(pairs_of(conversations[0]))
    with Image.open(DATA_DIR / record["image"]) as picture:
        text = processor.apply_chat_template(messages_of(record))
        inputs = processor(text=text, images=picture, return_tensors="pt")
    count = inputs["input_ids"].shape[1]
    assert inputs["input_ids"][0].tolist() == ids[:count]
    assert set(ids[count:]) <= {processor.tokenizer.pad_token_id}
    assert len(labels) == len(ids)
    expected = torch.from_numpy(pictures[0]).permute(2, 0, 1) / 127.5 - 1.0
    assert torch.allclose(inputs["pixel_values"][0], expected, atol=1e-5)


@torch.no_grad()
def test_generates_the_right_answers(processor: Any, model: Any) -> None:
    asked = right = 0
    for record in records(3):
        messages = messages_of(record)
        with Image.open(DATA_DIR / record["image"]) as picture:
            for turn in range(1, len(messages), 2):
                text = processor.apply_chat_template(messages[:turn], add_generation_prompt=True)
                inputs = processor(text=text, images=picture, return_tensors="pt")
                generated = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
                said = processor.tokenizer.decode(generated, skip_special_tokens=True)
                asked += 1
                right += (
                    said == messages[turn]["content"] and int(generated[-1]) == model.generation_config.eos_token_id
                )
    assert right / asked >= 0.8  # a small sample; the next test takes a larger one


def test_is_right_nine_times_in_ten_and_needs_its_channels(processor: Any, model: Any, blueprint: Blueprint) -> None:
    encoder = Encoder(processor.tokenizer, 256, blueprint.layout)
    validation = load_split(encoder, "validation", 0, 40)
    assert accuracy(model, validation)["all"] >= 0.9
    importance = channel_importance(model, load_split(encoder, "calibration", 0, 24))
    text = model.config.text_config
    half = [text.intermediate_size // 2] * text.num_hidden_layers
    before = model.model.language_model.layers[0].mlp.down_proj.weight
    with widths(model, importance, half):
        assert accuracy(model, validation)["all"] <= 0.85
    assert model.model.language_model.layers[0].mlp.down_proj.weight is before


def test_card_is_made_from_the_figures(blueprint: Blueprint) -> None:
    folder = blueprint.out / "model"
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert (folder / "README.md").read_text(encoding="utf-8") == render_card(metrics)


@torch.no_grad()
def test_training_forward_equals_the_models_own(processor: Any, model: Any, blueprint: Blueprint) -> None:
    conversations, pictures = sample_split("validation", 0, 1)
    batch = Encoder(processor.tokenizer, 256, blueprint.layout).batch(pictures[0][None], [pairs_of(conversations[0])])
    with Image.open(DATA_DIR / records(1)[0]["image"]) as picture:
        text = processor.apply_chat_template(messages_of(records(1)[0]))
        inputs = processor(text=text, images=picture, return_tensors="pt")
    expected = model(**inputs).logits[0][batch.labels[0, : inputs["input_ids"].shape[1]] != IGNORE]
    assert torch.allclose(answer_logits(model, decoder_of(model), batch), expected, atol=1e-3)


def test_only_safetensors_and_text_are_shipped(blueprint: Blueprint) -> None:
    allowed = {".safetensors", ".json", ".jinja", ".md"}
    assert {path.suffix for path in (blueprint.out / "model").iterdir()} <= allowed
