"""Models without eyes: a folder with a tokenizer alone, and conversations without images."""

from dataclasses import replace
from pathlib import Path

import pytest

from pruning.checkpoints.loading import load_model, load_processor
from pruning.data.batches import make_batches
from pruning.data.conversations import Conversation
from pruning.errors import CheckpointError, DatasetError
from pruning.measuring.evaluation import evaluate_model
from pruning.measuring.generation import generate_answers
from tests.tiny_models import save_tiny_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("language") / "model", "llama")


@pytest.fixture
def texts(conversations: list[Conversation]) -> list[Conversation]:
    return [replace(c, image=None) for c in conversations]


def test_answers_are_where_they_are(folder: Path, texts: list[Conversation]) -> None:
    tokenizer = load_processor(folder)
    (batch,) = make_batches(texts, tokenizer, batch_size=8)
    assert batch.inputs.keys() == {"input_ids", "attention_mask"}
    answers = [
        tokenizer.decode(batch.inputs["input_ids"][span.row, span.start : span.stop]).strip() for span in batch.spans
    ]
    assert answers == [f"{turn.answer}<eos>" for c in texts for turn in c.turns]


def test_it_is_scored_and_asked(folder: Path, texts: list[Conversation]) -> None:
    model, tokenizer = load_model(folder), load_processor(folder)
    metrics = evaluate_model(model, make_batches(texts, tokenizer, batch_size=4))
    assert metrics.num_answers == 12
    assert metrics.nll > 1.0
    report = generate_answers(model, tokenizer, texts, batch_size=5)
    assert report.num_answers == 12
    one_by_one = generate_answers(model, tokenizer, texts, batch_size=1)
    # How many tokens are generated depends on the longest answer of a batch.
    assert [[text[:2] for text in row] for row in report.answers] == [
        [t[:2] for t in row] for row in one_by_one.answers
    ]


def test_a_conversation_with_an_image_is_refused(folder: Path, conversations: list[Conversation]) -> None:
    tokenizer = load_processor(folder)
    with pytest.raises(DatasetError, match=r"without images.*conversation c0: .*0\.png"):
        make_batches(conversations, tokenizer)
    with pytest.raises(DatasetError, match="without images"):
        generate_answers(load_model(folder), tokenizer, conversations)


def test_a_tokenizer_without_padding_pads_nevertheless(folder: Path, texts: list[Conversation], tmp_path: Path) -> None:
    tokenizer = load_processor(folder)
    tokenizer.pad_token = None
    for path in (folder / "config.json", folder / "model.safetensors"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tokenizer.save_pretrained(tmp_path)
    again = load_processor(tmp_path)
    assert again.pad_token == "<eos>"
    (batch,) = make_batches(texts, again, batch_size=8)
    (padded,) = make_batches(texts, load_processor(folder), batch_size=8)
    assert batch.inputs["attention_mask"].equal(padded.inputs["attention_mask"])


def test_a_tokenizer_without_a_template(folder: Path, texts: list[Conversation]) -> None:
    tokenizer = load_processor(folder)
    tokenizer.chat_template = None
    with pytest.raises(CheckpointError, match="chat template"):
        make_batches(texts, tokenizer)


def test_a_model_that_sees_needs_more_than_a_tokenizer(folder: Path, tmp_path: Path) -> None:
    seeing = save_tiny_checkpoint(tmp_path / "model", "llava-llama")
    for path in seeing.glob("*process*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="processor"):
        load_processor(seeing)
