"""What is shown of a recovery while it goes on."""

from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from lop.console import recovery_progress as progress_module
from lop.console.recovery_progress import recovery_progress, silent
from recovery.scores import AnswerScores


def shown(monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool) -> str:
    """Of a recovery of four steps, after the second."""
    written = StringIO()
    console = Console(file=written, force_terminal=is_terminal, width=160, highlight=False)
    monkeypatch.setattr(progress_module, "stderr", lambda: console)
    ones = np.ones(2)
    scores = AnswerScores(kl=ones / 8, nll=ones, tokens=ones, agreeing=ones, correct=np.array([1.0, 0.0]))
    with recovery_progress() as ears:
        ears.stage("dense model, selection")(3, 3)
        ears.watcher.on_step(1, 4, 0.75, 1000.0)
        ears.watcher.on_scores(1, scores, True)
        ears.watcher.on_step(2, 4, 0.5, 1234.4)
    return written.getvalue()


def test_stages_steps_and_the_last_score(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, is_terminal=True).splitlines()
    assert any("dense model, selection" in line and "3/3" in line for line in lines)
    assert any(
        "training" in line
        and "2/4" in line
        and "loss 0.5, 1,234 tokens/s, KL 0.125, exact 50.0%, the best so far" in line
        for line in lines
    )


def test_no_bars_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, is_terminal=False).strip() == ""


def test_notes_say_which_process_they_are_of(capsys: pytest.CaptureFixture[str]) -> None:
    with silent(2) as ears:
        ears.stage("dense model, selection")(1, 1)
        ears.watcher.on_step(1, 4, 0.5, 1.0)
        ears.on_note("the disk is full")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "process 2: the disk is full" in printed.err
