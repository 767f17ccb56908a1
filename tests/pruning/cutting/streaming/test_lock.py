"""One run at a time: also where the file system has no locks, and never at the cost of somebody's file."""

import errno
import fcntl
import importlib.util
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from pruning.cutting.streaming import lock
from pruning.cutting.streaming.lock import locked_file
from pruning.errors import CheckpointError


def test_the_file_is_held_until_the_block_ends(tmp_path: Path) -> None:
    path, out = tmp_path / "state", tmp_path / "out"
    with locked_file(path, out), pytest.raises(CheckpointError, match="one run at a time") as caught:
        locked_file(path, out).__enter__()
    assert caught.value.__cause__ is None
    assert str(out) in str(caught.value)
    with locked_file(path, out) as file:
        file.write(b"x")
    assert path.read_bytes() == b"x"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_without_locks_runs_on_this_machine_see_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "here"))
    real = fcntl.flock

    def only_here(file: Any, operation: int) -> None:
        if os.path.samestat(os.fstat(file.fileno()), (tmp_path / "state").stat()):
            raise OSError(code, os.strerror(code))
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", only_here)
    with (
        caplog.at_level(logging.WARNING),
        locked_file(tmp_path / "state", tmp_path / "out"),
        pytest.raises(CheckpointError, match="one run at a time"),
    ):
        locked_file(tmp_path / "state", tmp_path / "out").__enter__()
    assert f"no locks in {tmp_path}" in caplog.text
    with locked_file(tmp_path / "state", tmp_path / "out"):
        pass


def test_without_any_locks_a_run_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def never(_file: Any, _operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(fcntl, "flock", never)
    with caplog.at_level(logging.WARNING), locked_file(tmp_path / "state", tmp_path / "out"):
        pass
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


def test_a_system_without_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(lock, "find_spec", lambda name: None if name == "fcntl" else real(name))
    with pytest.raises(CheckpointError, match=r"Linux or macOS.*use WSL"):
        locked_file(tmp_path / "state", tmp_path / "out").__enter__()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["link", "dangling link", "folder", "pipe"])
def test_what_is_no_regular_file_is_left_alone(tmp_path: Path, kind: str) -> None:
    precious, path = tmp_path / "precious", tmp_path / "state"
    precious.write_text("x")
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(precious if kind == "link" else tmp_path / "nowhere")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=rf"no regular file.*Remove {path}"):
        locked_file(path, tmp_path / "out").__enter__()
    assert precious.read_text() == "x"
    assert sorted(tmp_path.iterdir()) == before


def test_a_link_that_appears_meanwhile_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "precious").write_text("x")
    (tmp_path / "state").symlink_to(tmp_path / "precious")
    monkeypatch.setattr(Path, "is_symlink", lambda _path: False)
    with pytest.raises(OSError, match="symbolic links"):
        locked_file(tmp_path / "state", tmp_path / "out").__enter__()
