"""The files of a training that goes on after its process died."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from recovery.state import STATE_NAME, Progress, StateFolder


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
