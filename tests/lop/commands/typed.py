"""Commands as a user types them, in this process: their exit codes."""

import sys
from pathlib import Path

import pytest

from lop.cli import main


def typed(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """The exit code of `lop WORDS`."""
    monkeypatch.setattr(sys, "argv", ["lop", *map(str, words)])
    try:
        main()
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def lop_apply(monkeypatch: pytest.MonkeyPatch, plan: Path, model: Path, *options: object) -> int:
    """Of `lop apply`, into the folder `out` beside the plan."""
    return typed(monkeypatch, "apply", "--plan", plan, "--model", model, "--out", plan.parent / "out", *options)
