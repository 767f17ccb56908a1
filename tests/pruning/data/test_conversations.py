"""Conversation files: LLaVA's format, every fault named with its place."""

import json
from pathlib import Path
from typing import Any

import pytest

from pruning.checkpoints.lfs_pointers import is_pointer
from pruning.data.conversations import Conversation, Turn, calibration_id, load_conversations
from pruning.data.picture_files import check_header, check_pixels, open_upright
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


@pytest.mark.parametrize(
    "more",
    [{"video": "a.mp4"}, {"videos": ["a.mp4"]}, {"audio": "a.wav"}, {"images": ["images/0.png", "images/0.png"]}],
)
def test_other_media_are_refused(tmp_path: Path, more: dict[str, Any]) -> None:
    with pytest.raises(DatasetError, match=rf"one picture.*item 0 \(id a\): {next(iter(more))}"):
        load_conversations(write(tmp_path, [item("q", "a", **more)]))


def test_keys_that_hold_nothing_are_ignored(tmp_path: Path) -> None:
    write_conversations(tmp_path, 2)
    more: dict[str, Any] = {"video": None, "audio": "", "images": ["images/0.png"], "source": "web"}
    assert load_conversations(write(tmp_path, [item("<image>q", "a", image="images/0.png", **more)]))


@pytest.mark.parametrize("texts", [("<video>\nq", "a"), ("q", "a <audio> b"), ("q", "a", "<video>", "b")])
def test_other_placeholders_are_refused(tmp_path: Path, texts: tuple[str, ...]) -> None:
    with pytest.raises(
        DatasetError, match=r"only placeholder is <image>.*item 0 \(id a\), message \d: <(video|audio)>"
    ):
        load_conversations(write(tmp_path, [item(*texts)]))


@pytest.mark.parametrize("texts", [("what is \ud83d this?", "red"), ("what?", "\udc00")])
def test_half_a_character_is_refused(tmp_path: Path, texts: tuple[str, ...]) -> None:
    with pytest.raises(
        DatasetError, match=r"Unicode.*item 0 \(id a\), message [01]: half of a surrogate pair"
    ) as error:
        load_conversations(write(tmp_path, [item(*texts)]))
    str(error.value).encode()  # can be printed


def test_only_what_is_used_is_checked(tmp_path: Path) -> None:
    good, rest = item("q", "a"), [item("q", "a", image="images/none.png"), {"id": 3}, "no item"]
    path = write(tmp_path, [good, good, *rest])
    assert len(load_conversations(path, 2)) == 2
    for limit in (3, None):
        with pytest.raises(DatasetError, match=r"item 2|none\.png|item 3"):
            load_conversations(path, limit)
    assert len(load_conversations(write(tmp_path, [good]), 64)) == 1
    with pytest.raises(DatasetError, match="must be JSON"):
        load_conversations(write(tmp_path, json.dumps([good, good])[:-1] + ", {"), 2)


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


@pytest.mark.parametrize("more", [{"image": "a\0.png"}, {"image": "\ud800.png"}, {"id": "\udfffx"}])
def test_ids_and_paths_that_no_file_could_have_are_refused(tmp_path: Path, more: dict[str, Any]) -> None:
    item = {"id": "a", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], **more}
    path = tmp_path / "data.json"
    path.write_text(json.dumps([item]))
    with pytest.raises(DatasetError, match=f"must be Unicode texts without NUL.*item 0.*{next(iter(more))}"):
        load_conversations(path)


@pytest.mark.parametrize("name", ["a\0.png", "\ud800.png"])
def test_a_path_that_no_file_could_have_is_no_picture(tmp_path: Path, name: str) -> None:
    assert not is_pointer(tmp_path / name)
    for read in (check_header, check_pixels, open_upright):
        with pytest.raises(DatasetError):
            read(tmp_path / name)
