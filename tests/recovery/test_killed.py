"""A process that dies in the middle of a training, as the kernel kills one that takes too much memory."""

import os
import signal
from pathlib import Path

import pytest

from recovery.processes import ALONE, Processes
from recovery.recover import state_folder
from recovery.state import STATE_NAME
from tests.forked import start
from tests.recovery.conftest import Cut
from tests.recovery.joint import any_lower_kl_is_better, recovered

CHANGES = {"mode": "full"}


def killed_at_five(cut: Cut, out: Path) -> None:
    """A recovery that does not come to its end."""

    def kill(_processes: Processes, step: int) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    any_lower_kl_is_better(pytest.MonkeyPatch())
    recovered(ALONE, cut, out, CHANGES, kill)


def test_killed_and_run_again_it_ends_bit_equal(cut: Cut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    any_lower_kl_is_better(monkeypatch)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    recovered(ALONE, cut, whole, CHANGES)
    process = start(killed_at_five, cut, killed, stdout=tmp_path / "out.txt", stderr=tmp_path / "err.txt")
    process.join()
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "err.txt").read_text()
    assert not killed.exists()
    assert (state_folder(killed) / STATE_NAME).is_file()
    steps: list[int] = []
    report, notes = recovered(ALONE, cut, killed, CHANGES, lambda _processes, step: steps.append(step))
    assert steps == [5, 6, 7, 8]
    assert not any("begins anew" in note for note in notes)
    assert (report["written"], report["best_step"] > 5) == ("recovered", True)
    for path in whole.glob("*.safetensors"):
        assert (killed / path.name).read_bytes() == path.read_bytes()
        assert (cut.pruned / path.name).read_bytes() != path.read_bytes()
    assert not state_folder(killed).exists()
