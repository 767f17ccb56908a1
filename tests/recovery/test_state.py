"""The files of a training that goes on after its process died."""

import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pruning.errors import CheckpointError
from recovery.peak_memory import peak_memory_bytes
from recovery.state import STATE_NAME, Progress, StateFolder, check_state_room
from recovery.tensor_file import replace_tensors
from tests.forked import CONTEXT


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """With a state at step 3, whose best weights are the start."""
    folder = StateFolder(tmp_path / "state", "key")
    folder.save(Progress(num_steps=8, step=3, curve=[(1, 0.5, 0.1)]), {"weights.a": torch.ones(2)})
    return tmp_path / "state"


def test_a_state_is_read_again(saved: Path) -> None:
    notes: list[str] = []
    found = StateFolder(saved, "key").load(notes.append)
    assert found is not None
    assert (found[0].step, found[0].curve) == (3, [(1, 0.5, 0.1)])
    assert torch.equal(found[1]["weights.a"], torch.ones(2))
    assert StateFolder(saved, "other key").load(notes.append) is None
    assert notes == []


def test_a_state_that_cannot_be_gone_on_with_is_told_of(saved: Path) -> None:
    notes: list[str] = []
    folder = StateFolder(saved, "key")
    save_file({"weights.a": torch.ones(2)}, saved / STATE_NAME, metadata={"lop_recovery": "{}"})
    assert folder.load(notes.append) is None
    (saved / STATE_NAME).write_bytes(b"no safetensors")
    assert folder.load(notes.append) is None
    folder.save(Progress(num_steps=8, step=3, best_step=2), {})
    assert folder.load(notes.append) is None
    assert [("begins anew" in note, STATE_NAME in note) for note in notes] == [(True, True)] * 3
    assert "another version" in notes[0]
    assert "best-2.safetensors is gone" in notes[2]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_best_weights_are_at_most_two(saved: Path) -> None:
    """Those of the last saved state, with which a killed run goes on, and the newest."""
    folder = StateFolder(saved, "key")
    assert folder.load(pytest.fail) is not None
    for step in (4, 5):
        folder.save_best(step, {"a": torch.full((2,), float(step))})
    assert names(saved) == ["best-5.safetensors", "key", STATE_NAME]
    folder.save(Progress(num_steps=8, step=5, best_step=5), {})
    for step in (6, 7):
        folder.save_best(step, {"a": torch.full((2,), float(step))})
    assert names(saved) == ["best-5.safetensors", "best-7.safetensors", "key", STATE_NAME]
    again = StateFolder(saved, "key")
    assert again.load(pytest.fail) is not None
    again.save_best(6, {"a": torch.ones(2)})
    assert names(saved) == ["best-5.safetensors", "best-6.safetensors", "key", STATE_NAME]


def test_a_full_disk_is_said_and_the_state_before_is_whole(saved: Path) -> None:
    folder = StateFolder(saved, "key")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))  # refused as a full disk is, with an error of safetensors
    try:
        with pytest.raises(CheckpointError, match=r"must have room for the training's state.* same command"):
            folder.save(Progress(num_steps=8, step=4), {"weights.a": torch.zeros(2**16)})
        with pytest.raises(CheckpointError, match=r"must have room for the training's state.* same command"):
            folder.save_best(4, {"a": torch.zeros(2**16)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(saved) == ["key", STATE_NAME]
    found = folder.load(pytest.fail)
    assert found is not None
    assert found[0].step == 3


def test_what_a_process_died_writing_is_removed(saved: Path) -> None:
    (saved / f".{STATE_NAME}.123.partial").write_bytes(b"half")
    StateFolder(saved, "key")
    assert names(saved) == ["key", STATE_NAME]


def test_the_room_for_states(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and two moments, twice while a state replaces another; best weights, twice; 4 MiB of the rest."""
    trained, rest, usage = 2**30, 2**22, shutil.disk_usage(saved)
    kept = (saved / STATE_NAME).stat().st_size

    def check(free: int, output_bytes: int = 0) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda _folder: usage._replace(free=free))
        check_state_room(saved, trained, output_bytes)

    check(8 * trained + rest - kept)
    check(8 * trained + rest - kept, output_bytes=4 * trained)  # when that is written there is one state, and one best
    for free, output_bytes in ((8 * trained + rest - kept - 1, 0), (8 * trained + rest - kept, 4 * trained + 1)):
        with pytest.raises(CheckpointError, match="room for the training's state"):
            check(free, output_bytes)


def _rise(pipe: Any, path: Path) -> None:
    tensors = {str(index): torch.ones(2**23) for index in range(4)}
    before = peak_memory_bytes()
    replace_tensors(path, tensors)
    pipe.send(peak_memory_bytes() - before)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_saving_copies_nothing(tmp_path: Path) -> None:
    ours, theirs = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_rise, args=(theirs, tmp_path / "state"))  # a peak of its own
    process.start()
    assert ours.recv() < 2**24  # of 128 MiB
    process.join()
