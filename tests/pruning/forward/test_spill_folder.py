"""Large temporary files go to a disk, unless the user says where they go."""

import tempfile
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from pruning.forward import spill_folder as module
from pruning.forward.spill_folder import is_in_memory, spill_folder
from pruning.forward.tensor_store import TensorStore


@pytest.fixture
def usual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files; nothing says otherwise."""
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "usual"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "disk"
    folder.mkdir()
    monkeypatch.setattr(module, "DISK_FOLDER", folder)
    return folder


def mount(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *places: tuple[Path, str]) -> None:
    """Let the system say that these are mounted beside a disk at the root."""
    lines = [f"/dev/sda1 {str(place).replace(' ', chr(92) + '040')} {kind} rw 0 0" for place, kind in places]
    file = tmp_path / "mounts"
    file.write_text("\n".join(["/dev/sda1 / ext4 rw,relatime 0 0", *lines]) + "\n")
    monkeypatch.setattr(module, "_MOUNTS", file)


def test_a_folder_on_a_disk_is_used(usual: Path, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount(monkeypatch, tmp_path, (disk, "tmpfs"), (Path(f"{usual}2"), "tmpfs"))
    assert spill_folder() == usual


@pytest.mark.parametrize("kind", ["tmpfs", "ramfs"])
def test_a_folder_in_memory_is_not(
    kind: str, usual: Path, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount(monkeypatch, tmp_path, (usual, kind))
    assert spill_folder() == disk
    with TensorStore(0) as store:
        opened: list[Path] = []
        real = tempfile.TemporaryFile

        def remembered(**kwargs: Any) -> IO[bytes]:
            opened.append(kwargs["dir"])
            file: IO[bytes] = real(**kwargs)
            return file

        monkeypatch.setattr(tempfile, "TemporaryFile", remembered)
        key = store.put(torch.ones(3))
        assert torch.equal(store.get(key, torch.device("cpu")), torch.ones(3))
        assert opened == [disk]


@pytest.mark.parametrize("name", ["TMPDIR", "TEMP", "TMP"])
def test_the_users_word_stands(
    name: str, usual: Path, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount(monkeypatch, tmp_path, (usual, "tmpfs"))
    assert spill_folder() == disk
    monkeypatch.setenv(name, str(usual))
    assert spill_folder() == usual


def test_without_a_better_place(usual: Path, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount(monkeypatch, tmp_path, (usual, "tmpfs"), (disk, "tmpfs"))
    assert spill_folder() == usual
    mount(monkeypatch, tmp_path, (usual, "tmpfs"))
    monkeypatch.setattr(module, "DISK_FOLDER", tmp_path / "none")
    assert spill_folder() == usual
    monkeypatch.setattr(module, "_MOUNTS", tmp_path / "no such file")  # not Linux
    assert not is_in_memory(usual)


def test_the_deepest_and_latest_mount_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spaced = tmp_path / "a b"
    spaced.mkdir()
    mount(monkeypatch, tmp_path, (spaced, "tmpfs"))
    assert is_in_memory(spaced / "c")
    assert not is_in_memory(tmp_path / "a")
    mount(monkeypatch, tmp_path, (spaced, "tmpfs"), (spaced, "xfs"))
    assert not is_in_memory(spaced)
