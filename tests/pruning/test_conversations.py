"""Conversation files: LLaVA's format, every fault named with its place."""

import json
from pathlib import Path
from typing import Any

import pytest

from pruning.conversations import Conversation, Turn, calibration_id, load_conversations
from pruning.errors import DatasetError
from tests.tiny_models import write_conversations


def write(folder: Path, document: Any) -> Path:
    path = folder / "data.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def item(*values: str, **extra: Any) -> dict[str, Any]:
    turns = [{"from": "human" if i % 2 == 0 else "gpt", "value": v} for i, v in enumerate(values)]
    return {"id": "a", "conversations": turns, **extra}


def test_a_llava_file(tmp_path: Path) -> None:
    first, *_, last = load_conversations(write_conversations(tmp_path, 3))
    assert first.image == tmp_path / "images" / "0.png"
    assert first.turns[0].question == "what is it 0?"
    assert last.image is None
    assert first.messages()[0] == {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "what is it 0?"}],
    }
    assert first.messages()[2]["content"] == [{"type": "text", "text": "what is it 1?"}]


@pytest.mark.parametrize("value", ["<image>\nwhat?", "what?\n<image>", "<image> what?"])
def test_the_placeholder_may_stand_anywhere_in_the_first_question(tmp_path: Path, value: str) -> None:
    write_conversations(tmp_path, 2)
    (found,) = load_conversations(write(tmp_path, [item(value, "red", image="images/0.png")]))
    assert found.turns == (Turn("what?", "red"),)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "must be JSON"),
        ({}, "non-empty JSON list"),
        ([], "non-empty JSON list"),
        ([{"id": 1}], "list `conversations`"),
        ([item("q")], "ends with an answer"),
        ([item("q", "a", "q")], "ends with an answer"),
        ([item("q", "")], "must not be empty"),
        ([item("<image>q", "a")], "1 placeholders, image None"),
        ([item("q", "a", "<image>q", "a", image="x.png")], "first question"),
        ([item("q", "a", image=["x.png", "y.png"])], "one image"),
        ([{"id": 3, "conversations": [{"from": "gpt", "value": "a"}]}], "alternate"),
        ([item("q", "a"), item("q", "a", image="images/none.png")], r"images/none\.png \(conversation a\)"),
    ],
)
def test_a_fault_is_named(tmp_path: Path, document: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        load_conversations(write(tmp_path, document))


def test_a_missing_file_and_a_damaged_image(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="readable"):
        load_conversations(tmp_path / "none.json")
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(DatasetError, match=r"bad\.png"):
        load_conversations(write(tmp_path, [item("<image>q", "a", image="bad.png")]))


def test_the_id_changes_with_texts_images_and_order(tmp_path: Path) -> None:
    conversations = load_conversations(write_conversations(tmp_path, 3))
    same = load_conversations(write_conversations(tmp_path / "again", 3))
    assert calibration_id(conversations) == calibration_id(same)
    assert calibration_id(conversations[::-1]) != calibration_id(conversations)
    changed = Conversation("a", conversations[0].image, (Turn("what is it 0?", "other"), *conversations[0].turns[1:]))
    assert calibration_id([changed, *conversations[1:]]) != calibration_id(conversations)
    image = conversations[0].image
    assert image is not None
    image.write_bytes((same[1].image or image).read_bytes())
    assert calibration_id(conversations) != calibration_id(same)
