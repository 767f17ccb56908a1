"""Finished answers on the disk: whole batches or nothing, whatever killed the run."""

from pathlib import Path

import pytest

from pruning.errors import CheckpointError, DatasetError
from pruning.measuring.answer_draft import draft_file, locked_answers
from pruning.measuring.answers import Answer

FIRST, SECOND = [Answer("red", False), Answer("é\nblue", True)], [Answer("", False)]


def fill(out: Path) -> bytes:
    """A draft of two batches; what it holds."""
    with locked_answers(out) as draft:
        draft.add("first", FIRST)
        draft.add("second", SECOND)
    return draft_file(out).read_bytes()


def test_batches_are_found_again_and_go_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    fill(out)
    with locked_answers(out) as draft:
        assert draft.find("first") == FIRST
        assert draft.find("second") == SECOND
        assert draft.find("third") is None
        draft.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_draft_without_answers_is_not_left_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), locked_answers(tmp_path / "out.json"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_killed_at_every_byte(tmp_path: Path) -> None:
    """What was written before the kill, to the last whole batch, is found; the rest is written anew."""
    out = tmp_path / "out.json"
    content = fill(out)
    ends = [place + 1 for place, byte in enumerate(content) if byte == 10]
    for size in range(len(content)):
        draft_file(out).write_bytes(content[:size])
        with locked_answers(out) as draft:
            assert draft.find("first") == (FIRST if size >= ends[1] else None)
            assert draft.find("second") is None
            if size < ends[1]:
                draft.add("first", FIRST)
            draft.add("second", SECOND)
        assert draft_file(out).read_bytes() == content


@pytest.mark.parametrize("damaged", [b"notes of mine\n", b"notes", b"{}\n", b"\x00\xff\n"])
def test_what_is_no_draft_is_refused_and_left_alone(tmp_path: Path, damaged: bytes) -> None:
    out = tmp_path / "out.json"
    draft_file(out).write_bytes(damaged)
    with (
        pytest.raises(DatasetError, match=r"\.out\.json\.part-answers\.jsonl, its first line.*Remove"),
        locked_answers(out),
    ):
        pass
    assert draft_file(out).read_bytes() == damaged


@pytest.mark.parametrize(
    "line", [b"{", b"3", b"{}", b'{"batch": "k", "answers": [["a"]]}', b'{"batch": "k", "answers": [[1, true]]}']
)
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    out = tmp_path / "out.json"
    content = fill(out)
    draft_file(out).write_bytes(content + line + b"\n")
    with pytest.raises(DatasetError, match="line 4"), locked_answers(out):
        pass


def test_one_run_at_a_time_and_no_folder(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    with (
        locked_answers(out),
        pytest.raises(CheckpointError, match="one run at a time"),
        locked_answers(out),
    ):
        pass
    draft_file(out).mkdir()
    with pytest.raises(CheckpointError, match="no regular file"), locked_answers(out):
        pass
    with pytest.raises(DatasetError, match="No such file"), locked_answers(tmp_path / "none" / "out.json"):
        pass
