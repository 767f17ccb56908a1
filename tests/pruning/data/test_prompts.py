"""Prompt files: three forms, every fault named with its place."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pruning.data.conversations import Turn
from pruning.data.prompts import Prompt, load_prompts
from pruning.errors import DatasetError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a picture, a.png."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    return tmp_path


def write(folder: Path, document: Any, name: str = "prompts.json") -> Path:
    path = folder / name
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return path


def human(*values: Any, **more: Any) -> dict[str, Any]:
    return {"id": "a", "conversations": [{"from": "human", "value": value} for value in values], **more}


def test_llava_items_whose_answers_are_ignored(folder: Path) -> None:
    item = human("<image>\nwhat?", image="a.png")
    item["conversations"] += [{"from": "gpt", "value": None}, {"from": "human", "value": "why?"}, {"from": "gpt"}]
    (found,) = load_prompts(write(folder, [item]))
    assert found == Prompt("a", folder / "a.png", ("what?", "why?"))
    assert found.asked([]).turns == (Turn("what?", ""),)
    assert found.asked(["red"]).turns == (Turn("what?", "red"), Turn("why?", ""))
    assert found.answered(["red"]).turns == (Turn("what?", "red"),)


def test_a_plain_list(folder: Path) -> None:
    document = ["one?", {"id": 7, "prompt": "two?", "image": "a.png"}, {"prompt": "", "image": "a.png"}]
    assert load_prompts(write(folder, document)) == [
        Prompt("0", None, ("one?",)),
        Prompt("7", folder / "a.png", ("two?",)),
        Prompt("2", folder / "a.png", ("",)),
    ]


def test_lines_of_text(folder: Path) -> None:
    path = write(folder, "\ufeffone?\r\n\n  two?  \n", "prompts.TXT")
    assert [(x.id, x.questions) for x in load_prompts(path)] == [("0", ("one?",)), ("1", ("two?",))]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "prompts file must be JSON"),
        ([], "non-empty JSON list"),
        ({"prompt": "q"}, "non-empty JSON list"),
        ([3], "a prompt is a text, .*item 0"),
        ([{"id": "a"}], "a prompt is a text"),
        ([{"prompt": "q", "conversations": []}], "a prompt is a text"),
        ([{"prompt": ["q"]}], "a prompt is a text"),
        (["q", "  "], r"must not be empty \(got .*item 1"),
        ([human("q", "")], "must not be empty"),
        ([human()], r'has a message \{"from": "human"\}'),
        ([{"conversations": [{"from": "gpt", "value": "a"}]}], r'has a message \{"from": "human"\}'),
        ([{"conversations": [{"from": "system", "value": "a"}]}], "messages are"),
        ([{"conversations": "q"}], "messages are"),
        ([human("q", None)], "a prompt is a text"),
        (["<image>\nq"], "1 placeholders, image None"),
        ([{"prompt": "q", "image": ["a.png"]}], "one image"),
        ('["what is \\ud83d this?"]', "must be Unicode.*item 0"),
        ([{"prompt": "q", "video": "a.mp4"}], r"about one picture.*a\.mp4"),
        (["<video>\nq"], "only placeholder is <image>"),
        ([human("q"), "r", human("s")], r"1 ids stand for several: 'a' is of items \[0, 2\]"),
        ([{"id": "1", "prompt": "q"}, "r"], r"'1' is of items \[0, 1\]"),
    ],
)
def test_a_fault_is_named(folder: Path, document: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        load_prompts(write(folder, document))


def test_files_of_text_with_faults(folder: Path) -> None:
    with pytest.raises(DatasetError, match="no line with text"):
        load_prompts(write(folder, "\n  \n", "prompts.txt"))
    (folder / "latin.txt").write_bytes(b"caf\xe9?")
    with pytest.raises(DatasetError, match="text in UTF-8"):
        load_prompts(folder / "latin.txt")
    for name in ("none.txt", "none.json"):
        with pytest.raises(DatasetError, match="prompts file must be readable"):
            load_prompts(folder / name)


def test_missing_pictures_are_counted_and_damaged_ones_named(folder: Path) -> None:
    (folder / "bad.png").write_bytes(b"no picture")
    missing = [{"prompt": "q", "image": f"none{index}.png"} for index in range(5)]
    with pytest.raises(DatasetError, match=r"5 of 6 missing: .*none0\.png \(id 0\).*none2\.png \(id 2\)\)"):
        load_prompts(write(folder, [*missing, {"prompt": "q", "image": "a.png"}]))
    with pytest.raises(DatasetError, match=r"must be readable .*bad\.png"):
        load_prompts(write(folder, [{"prompt": "q", "image": "bad.png"}]))


def test_only_the_first_are_looked_at(folder: Path) -> None:
    path = write(folder, ["q", {"prompt": "q", "image": "none.png"}, 3])
    assert [prompt.id for prompt in load_prompts(path, 1)] == ["0"]


def test_what_else_ends_lines_is_part_of_a_prompt(folder: Path) -> None:
    path = folder / "prompts.txt"
    path.write_bytes("one\u2028two\r\n\r\nthree\x0cfour\n".encode())
    assert [prompt.questions for prompt in load_prompts(path)] == [("one\u2028two",), ("three\x0cfour",)]


@pytest.mark.parametrize("more", [{"id": "\ud800x"}, {"image": "\ud800.png"}, {"image": "a\0.png"}])
def test_ids_and_paths_are_texts(folder: Path, more: dict[str, str]) -> None:
    with pytest.raises(DatasetError, match=f"must be Unicode texts without NUL.*item 0.*{next(iter(more))}"):
        load_prompts(write(folder, [{"prompt": "what is it?", **more}]))
