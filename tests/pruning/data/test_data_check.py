"""What a conversation file holds: every fault with its item, what is odd, and counts worked out by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pruning.checkpoints.anatomy_reader import load_config
from pruning.checkpoints.loading import load_processor
from pruning.data.conversations import load_conversations
from pruning.data.data_check import DataReport, Spread, check_data
from pruning.errors import CheckpointError, DatasetError
from tests.tiny_models import save_tiny_checkpoint, write_conversations


def item(*values: str, **more: Any) -> dict[str, Any]:
    turns = [{"from": "human" if i % 2 == 0 else "gpt", "value": value} for i, value in enumerate(values)]
    return {"conversations": turns, **more}


def write(folder: Path, items: list[Any]) -> Path:
    path = folder / "data.json"
    path.write_text(json.dumps(items))
    return path


def warned(report: DataReport) -> dict[str, tuple[int, ...]]:
    """Items by the rule that they break; without that of too few answers, which all small files break."""
    return {x.rule: x.items for x in report.warnings if not x.rule.startswith("below")}


def test_a_file_in_order(tmp_path: Path) -> None:
    path = write_conversations(tmp_path, 40)
    items = json.loads(path.read_text())
    for index, one in enumerate(items):  # the last has no picture: its questions are its own
        one["conversations"][0]["value"] += f" {index}"
    path.write_text(json.dumps(items))
    report = check_data(path)
    assert (report.num_items, len(report.conversations), len(report.answers), len(report.pictures)) == (40, 40, 80, 39)
    assert (report.errors, report.warnings, report.tokens) == ((), (), None)
    assert {(picture.size, picture.mode) for picture in report.pictures} == {((32, 32), "RGB")}


def test_every_item_that_breaks_a_rule_is_listed(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[:40])
    Image.effect_noise((99, 99), 50).save(tmp_path / "cut.jpg")
    cut = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(cut[: len(cut) // 2])
    Image.new("I;16", (4, 4)).save(tmp_path / "deep.png")
    items = [
        item("q", "a"),
        "text",
        item("q", id="x"),
        item("q", ""),
        item("<image>\nq", "a", image="none.png"),
        item("<image>\nq", "a", image="half.png"),
        item("<image>\nq", "a", image="cut.jpg"),
        item("<image>\nr", "a", image="cut.jpg"),
        item("<image>\nq", "a", image="a.png"),
        item("<image>\nq", "a", image="deep.png"),
        item("q", "\ud83d"),
        item("<video>\nq", "a"),
    ]
    path = write(tmp_path, items)
    report = check_data(path)
    assert [(error.items, error.rule) for error in report.errors] == [
        ((1,), "each item has a list `conversations`"),
        ((2,), "a conversation ends with an answer"),
        ((3,), "an answer must not be empty"),
        ((4,), "every image that the file names must exist"),
        ((5,), "every image must be readable"),
        ((6,), "every image must be readable"),
        ((7,), "every image must be readable"),
        ((9,), "a picture must have 8 bits a channel"),
        ((10,), "texts must be Unicode"),
        ((11,), "the only placeholder is <image>"),
    ]
    assert report.errors[1].values == "id x, 1 messages"
    assert (report.num_missing, report.num_unreadable, len(report.pictures)) == (1, 4, 1)
    # What is listed first is what a command would say.
    with pytest.raises(DatasetError, match=report.errors[0].rule):
        load_conversations(path)


def test_what_is_odd(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (8, 6)).save(tmp_path / "turned.jpg", exif=turned)
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    (tmp_path / "twin.png").write_bytes((tmp_path / "a.png").read_bytes())
    Image.new("RGB", (4, 4)).save(tmp_path / "other.png")
    items = [
        item("<image>\nq", "a", image="a.png", id="x"),
        item("<image>\nq", "a", image="twin.png", id="y"),
        item("<image>\nother", "a", "q", "b", image="a.png", id="x"),
        item("<image>\nq", "a", image="turned.jpg", id=70),
        item("<image>\nq", "a", image="other.png", id=None),
        item("", "a"),
        item("q", "b" * 1001),
        item("q", "a", "why?", "c"),
        item("r", "a", "why?", "c"),
    ]
    report = check_data(write(tmp_path, items))
    assert report.errors == ()
    assert warned(report) == {
        "ids should be texts": (3,),
        "every conversation should have an id of its own": (2,),
        "conversations should differ": (1,),
        "a question about the same picture, or after the same words, should be asked once": (2, 7),
        "an answer is very long": (6,),
        "a question should have words": (5,),
        "a picture should lie upright in its file": (3,),
    }
    (few,) = [x for x in report.warnings if x.rule.startswith("below 64 answers")]
    assert few.values == "12 answers"


def test_an_answer_is_long_by_the_others(tmp_path: Path) -> None:
    items = [item(f"q{index}", "a" * 900) for index in range(3)]
    assert "an answer is very long" not in warned(check_data(write(tmp_path, [*items, item("q", "a" * 9000)])))
    assert warned(check_data(write(tmp_path, [*items, item("q", "a" * 9001)])))["an answer is very long"] == (3,)


def test_answers_that_are_all_equal(tmp_path: Path) -> None:
    report = check_data(write(tmp_path, [item("q", "a"), item("r", "a")]))
    assert warned(report) == {"answers should differ": ()}
    assert warned(check_data(write(tmp_path, [item("q", "a"), item("r", "b")]))) == {}


def test_tokens_of_a_model(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "model")
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    processor, config = load_processor(folder), load_config(folder)
    path = write(tmp_path, [item("<image>\nred", "blue", "seven", "seven", image="a.png"), item("red", "blue")])
    report = check_data(path, processor=processor, config=config)
    tokenizer = processor.tokenizer
    red, blue, seven = (
        len(tokenizer(word, add_special_tokens=False)["input_ids"]) for word in ("red", "blue", "seven")
    )
    assert report.tokens is not None
    first, second = report.tokens
    # An answer ends with <eos>, a message begins with its role; the picture has four tokens.
    assert (first.answers, first.image, first.prompt) == ((blue + 1, seven + 1), 4, 4 + red + seven)
    assert (second.answers, second.image, second.prompt, second.total) == ((blue + 1,), 0, 2 + red, 3 + red + blue)
    config.get_text_config().max_position_embeddings = second.total
    report = check_data(path, processor=processor, config=config)
    assert warned(report) == {"a conversation should fit the model's positions": (0,)}


def test_what_a_model_cannot_take(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "model", "llama")
    processor, config = load_processor(folder), load_config(folder)
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    path = write(tmp_path, [item("q", "a"), item("<image>\nq", "b", image="a.png")])
    (error,) = check_data(path, processor=processor, config=config).errors
    assert (error.items, error.rule) == ((1,), "a language model takes conversations without images")
    processor.chat_template = None
    with pytest.raises(CheckpointError, match="chat template"):
        check_data(path, processor=processor, config=config)


def test_spreads() -> None:
    assert Spread.of([3, 1, 2, 9]) == Spread(1, 2.5, 9)
    assert Spread.of([]) is None
