"""What is refused before anything is measured, and what a processor or a model raises: a line with the conversation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoTokenizer

from pruning.checkpoints.loading import load_model, load_processor
from pruning.data.batches import BatchStream, make_batches
from pruning.data.conversations import Conversation, Turn, load_conversations
from pruning.errors import CheckpointError, DatasetError, LopError
from pruning.forward.decoder_inputs import decoder_inputs
from pruning.measuring.evaluation import evaluate_model
from pruning.measuring.generation import generate_answers
from tests.tiny_models import save_tiny_checkpoint, tiny_processor, write_conversations
from tests.tiny_models.hub_folders import save_hub_folder


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    document = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_checkpoint(tmp_path / "model")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_conversations(tmp_path / "data", 6)


def test_a_setting_that_is_missing(folder: Path, data: Path) -> None:
    edit(folder / "processor_config.json", patch_size=None)
    with pytest.raises(DatasetError, match=r"processor must take every conversation.*conversation c0: TypeError"):
        make_batches(load_conversations(data), load_processor(folder))
    with pytest.raises(DatasetError, match="conversation c0: TypeError"):  # before a batch is asked for
        BatchStream(load_conversations(data), load_processor(folder), max_tokens=999)


@pytest.mark.parametrize("run", [decoder_inputs, evaluate_model])
def test_image_tokens_that_are_not_the_models(folder: Path, data: Path, run: Callable[..., object]) -> None:
    edit(folder / "processor_config.json", num_additional_image_tokens=0)
    batches = make_batches(load_conversations(data), load_processor(folder))
    with pytest.raises(CheckpointError, match=r"model must take.*conversations c0, c1, c2.*features.*patch_size"):
        run(load_model(folder), batches)


def test_what_generate_raises(folder: Path, data: Path) -> None:
    edit(folder / "processor_config.json", num_additional_image_tokens=0)
    with pytest.raises(CheckpointError, match=r"model must take.*c0.*generation_config\.json"):
        generate_answers(load_model(folder), load_processor(folder), load_conversations(data))


def test_memory_that_runs_out_is_not_the_checkpoints_fault(
    folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batches = load_model(folder), make_batches(load_conversations(data), load_processor(folder))

    def full(*_args: object, **_kwargs: object) -> None:
        raise MemoryError

    monkeypatch.setattr(type(model), "forward", full)
    with pytest.raises(MemoryError):
        decoder_inputs(model, batches)


@pytest.mark.parametrize("family", ["llava-llama", "llama"])
def test_a_token_without_an_embedding(family: str, tmp_path: Path, data: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / family, family)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    conversations = [Conversation(c.id, None, c.turns) for c in load_conversations(data)]
    make_batches(conversations, load_processor(folder))
    tokenizer.add_tokens(["seven"])
    tokenizer.save_pretrained(folder)
    processor, model = load_processor(folder), load_model(folder)
    who = next(c.id for c in conversations if any("seven" in turn.answer for turn in c.turns))
    message = rf"token must have an embedding.*conversation {who}: token 'seven' is number 284.*284 embeddings"
    with pytest.raises(CheckpointError, match=message):
        BatchStream(conversations, processor, max_tokens=999)
    with pytest.raises(CheckpointError, match="token must have an embedding"):
        generate_answers(model, processor, conversations)


def test_a_token_that_nobody_says_needs_no_embedding(folder: Path, data: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["unheard of"])
    tokenizer.save_pretrained(folder)
    assert make_batches(load_conversations(data), load_processor(folder))


def test_padding_is_any_token_that_has_an_embedding(tmp_path: Path, data: Path) -> None:
    whole = save_tiny_checkpoint(tmp_path / "a")
    expected = make_batches(load_conversations(data), load_processor(whole))
    without = save_tiny_checkpoint(tmp_path / "b")
    edit(without / "tokenizer_config.json", pad_token=None)
    beyond = save_tiny_checkpoint(tmp_path / "c")
    tokenizer = AutoTokenizer.from_pretrained(beyond)
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    tokenizer.save_pretrained(beyond)
    for folder in (without, beyond):
        processor = load_processor(folder)
        assert processor.tokenizer.pad_token_id == 2  # <eos>
        found = make_batches(load_conversations(data), processor)
        for left, right in zip(found, expected, strict=True):
            mask = right.inputs["attention_mask"].bool()
            assert (left.inputs["attention_mask"].bool() == mask).all()
            assert (left.inputs["input_ids"][mask] == right.inputs["input_ids"][mask]).all()


def test_no_token_to_pad_with(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "a", "llama")
    edit(folder / "tokenizer_config.json", pad_token=None, eos_token=None, bos_token=None)
    with pytest.raises(CheckpointError, match="token to pad with"):
        load_processor(folder)


def test_a_picture_that_ends_early_is_found_before_the_first_batch(folder: Path, data: Path) -> None:
    conversations = load_conversations(data)
    last = conversations[4].image
    assert last is not None
    noise = Image.effect_noise((256, 256), 64.0).convert("RGB")
    noise.save(last, "JPEG")
    last.write_bytes(last.read_bytes()[:3000])
    conversations = load_conversations(data)  # its header is whole
    processor, model = load_processor(folder), load_model(folder)
    with pytest.raises(DatasetError, match=r"readable.*4\.png.*truncated.*conversation c4"):
        BatchStream(conversations, processor, batch_size=1, max_tokens=999)
    with pytest.raises(DatasetError, match="conversation c4"):
        generate_answers(model, processor, conversations, batch_size=1)
    with pytest.raises(DatasetError, match="conversation c4"):
        make_batches(conversations, processor)


def test_a_picture_that_the_processor_does_not_take(tmp_path: Path, data: Path) -> None:
    folder = save_hub_folder(tmp_path / "qwen", "Qwen2-VL")
    conversations = load_conversations(data)
    narrow = conversations[3].image
    assert narrow is not None
    Image.effect_noise((2000, 4), 64.0).convert("RGB").save(narrow)
    processor = load_processor(folder)
    for build in (make_batches, lambda *x: BatchStream(*x, max_tokens=999)):
        with pytest.raises(DatasetError, match=r"conversation c3: .*aspect ratio"):
            build(conversations, processor)


@pytest.mark.parametrize("answer", ["what <image> is", "<image>"])
def test_the_models_own_placeholder_in_a_text(answer: str) -> None:
    talk = Conversation("talk", None, (Turn("what is it?", answer),))
    with pytest.raises(DatasetError, match=r"stands for a picture.*conversation talk: '<image>'"):
        make_batches([talk], tiny_processor())


@pytest.mark.parametrize("turn", [Turn("what is it?", "<eos>"), Turn("<bos>", "red")])
def test_a_text_without_tokens_of_its_own(turn: Turn) -> None:
    talk = Conversation("talk", None, (Turn("what is it?", "red"), turn))
    with pytest.raises(DatasetError, match=r"tokens of its own.*conversation talk: '<(eos|bos)>'"):
        make_batches([talk], tiny_processor())


def test_what_a_tokenizer_raises() -> None:
    processor = tiny_processor()
    good, half = (Conversation(x, None, (Turn(f"what is {y} it?", "red"),)) for x, y in (("a", ""), ("b", "\ud83d")))
    with pytest.raises(LopError, match=r"tokenizer must take every text.*conversation b"):
        make_batches([good, half], processor)
