"""An export's files: all of them or none, in place of nothing, whoever else writes or was killed."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gguf import GGUFReader

from pruning.cutting.gguf.export import export_gguf
from pruning.cutting.gguf.output_files import draft_file
from pruning.cutting.streaming import publish
from pruning.errors import CheckpointError


def test_what_a_killed_export_left_is_overwritten(checkpoint: Path, tmp_path: Path) -> None:
    draft_file(tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(100))
    export_gguf(checkpoint, tmp_path / "a.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]
    assert GGUFReader(tmp_path / "a.gguf").tensors


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_in_the_drafts_place_and_no_gguf_is_left_alone(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    precious, draft = tmp_path / "precious", draft_file(tmp_path / "a.gguf")
    precious.write_text("mine")
    if kind == "file":
        precious = precious.rename(draft)
    else:
        draft.symlink_to(precious)
    with pytest.raises(CheckpointError, match=rf"must be a draft.*Remove {draft}"):
        export_gguf(checkpoint, tmp_path / "a.gguf")
    assert precious.read_text() == "mine"
    assert not (tmp_path / "a.gguf").exists()


def test_two_exports_at_once(checkpoint: Path, tmp_path: Path) -> None:
    refused: list[str] = []

    def another(_done: int, _total: int) -> None:
        if not refused:
            with pytest.raises(CheckpointError, match="one run at a time") as caught:
                export_gguf(checkpoint, tmp_path / "a.gguf")
            refused.append(str(caught.value))

    export_gguf(checkpoint, tmp_path / "a.gguf", on_bytes=another)
    assert refused
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("taken", ["a.gguf", "b.gguf"])
def test_a_file_that_appears_meanwhile_is_not_replaced(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: str, links: bool
) -> None:
    """Also where the file system has no second names; and the other file does not appear alone."""

    def appear(_done: int, _total: int) -> None:
        (tmp_path / taken).write_text("mine")

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", no_links)
    with pytest.raises(CheckpointError, match=f"must not exist yet.*{taken}, which was not there at the start"):
        export_gguf(checkpoint, tmp_path / "a.gguf", mmproj=tmp_path / "b.gguf", on_bytes=appear)
    assert [path.name for path in tmp_path.iterdir()] == [taken]
    assert (tmp_path / taken).read_text() == "mine"


def no_links(*_arguments: Any) -> None:
    raise PermissionError(1, "Operation not permitted")


def test_without_second_names_files_are_renamed(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "hardlink_to", no_links)
    export_gguf(checkpoint, tmp_path / "a.gguf", mmproj=tmp_path / "b.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "b.gguf"]


def test_files_are_on_the_disk_before_they_have_their_names(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, bool]] = []
    original = publish.sync

    def noted(path: Path) -> None:
        seen.append((path.name, (tmp_path / "a.gguf").exists() or (tmp_path / "b.gguf").exists()))
        original(path)

    monkeypatch.setattr(publish, "sync", noted)
    export_gguf(checkpoint, tmp_path / "a.gguf", mmproj=tmp_path / "b.gguf")
    assert seen == [(".b.gguf.part", False), (".a.gguf.part", False), (tmp_path.name, True)]


@pytest.mark.parametrize("last", [0, 1, 2])
def test_interrupted_while_files_get_their_names_it_leaves_none(
    last: int, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is seen just then has the language model only with all others: a run that is killed there takes back
    nothing."""
    outputs, seen = [tmp_path / "a.gguf", tmp_path / "b.gguf", tmp_path / "types"], list[list[bool]]()
    rename = publish._rename_to_new

    def interrupted(draft: Path, out: Path) -> None:
        seen.append([path.exists() for path in outputs])
        if len(seen) > last:
            raise KeyboardInterrupt
        rename(draft, out)

    with monkeypatch.context() as patch:
        patch.setattr(publish, "_rename_to_new", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export_gguf(checkpoint, outputs[0], mmproj=outputs[1], beside={outputs[2]: b"a=q8_0\n"})
    assert list(tmp_path.iterdir()) == []
    assert seen == [[False, False, False], [False, False, True], [False, True, True]][: last + 1]
    export_gguf(checkpoint, outputs[0], mmproj=outputs[1], beside={outputs[2]: b"a=q8_0\n"})
    assert sorted(tmp_path.iterdir()) == outputs
    assert outputs[2].read_bytes() == b"a=q8_0\n"


def test_a_small_file_that_is_taken_is_left_and_nothing_is_written(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "types").write_text("mine")
    with pytest.raises(CheckpointError, match="must not exist yet"):
        export_gguf(checkpoint, tmp_path / "a.gguf", beside={tmp_path / "types": b"a"})
    with pytest.raises(CheckpointError, match="file of its own"):
        export_gguf(checkpoint, tmp_path / "a.gguf", beside={tmp_path / "a.gguf": b"a"})

    def appear(_done: int, _total: int) -> None:
        (tmp_path / "other").write_text("mine")

    with pytest.raises(CheckpointError, match="other, which was not there at the start"):
        export_gguf(checkpoint, tmp_path / "a.gguf", beside={tmp_path / "other": b"a"}, on_bytes=appear)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"types": "mine", "other": "mine"}


def test_files_on_one_file_system_share_its_room(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    outputs = tmp_path / "x" / "a.gguf", tmp_path / "y" / "b.gguf"
    made = export_gguf(checkpoint, outputs[0], mmproj=outputs[1])
    for path in outputs:
        path.unlink()
    each = 2**20 + max(made.file_bytes, made.mmproj_bytes) + 50_000  # room for either, not for both
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=each))
    with pytest.raises(CheckpointError, match="must have room for the export"):
        export_gguf(checkpoint, outputs[0], mmproj=outputs[1])
    export_gguf(checkpoint, outputs[0])


def test_what_a_killed_export_left_takes_no_room(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft, room = draft_file(tmp_path / "a.gguf"), 2**26
    draft.write_bytes(b"GGUF" + bytes(2**20))

    def usage(_path: Path) -> SimpleNamespace:
        return SimpleNamespace(free=0 if draft.exists() and draft.stat().st_size else room)

    monkeypatch.setattr("shutil.disk_usage", usage)
    export_gguf(checkpoint, tmp_path / "a.gguf")
    room = 0
    with pytest.raises(CheckpointError, match="must have room"):
        export_gguf(checkpoint, tmp_path / "b.gguf")


def test_a_source_that_shrinks_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(checkpoint, tmp_path / "source"))

    def shrink(_done: int, _total: int) -> None:
        for path in source.glob("*.safetensors"):
            os.truncate(path, 1000)

    with pytest.raises(CheckpointError, match="must stay as it is"):
        export_gguf(source, tmp_path / "a.gguf", on_bytes=shrink)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
