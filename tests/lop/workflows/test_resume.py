"""A search that is killed twice and run again ends as an undisturbed one; no sample is lost or doubled."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from lop.cli import main
from pruning.anatomy.architecture import Architecture
from storage.sql_repository import open_repository
from tests.forked import start_lop

KILLED_AFTER = (5, 24)
"""Samples: within the scan, which is measured in batches, and within the search of the first target."""


def arguments(database: Path, data: Path) -> list[str]:
    return [
        "search", "-m", "tiny", "-d", str(data), "-s", "0.3", "-s", "0.6", "-n", "20", "--num-levels", "6",
        "--conversations", "12", "--json", "--database", f"sqlite:///{database}",
    ]  # fmt: skip


def samples(database: Path) -> dict[Architecture, float]:
    with open_repository(f"sqlite:///{database}") as repository:
        rows = repository.list_samples("tiny")
    found = {row.architecture: row.metrics.kl for row in rows}
    assert len(found) == len(rows)
    return found


def kill_after(count: int, database: Path, data: Path) -> None:
    """A process of its own that searches, until so many samples are stored."""
    process = start_lop(*arguments(database, data), stdout=Path(os.devnull), stderr=Path(os.devnull))
    with open_repository(f"sqlite:///{database}") as repository:
        while repository.count_samples("tiny") < count:
            assert process.is_alive(), "the search ended before it could be killed"
            time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_sigkill_then_run_again(
    registered: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def search(database: Path) -> object:
        monkeypatch.setattr(sys, "argv", ["lop", *arguments(database, data)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return json.loads(capsys.readouterr().out)

    undisturbed, killed = tmp_path / "a.db", tmp_path / "b.db"
    for path in (undisturbed, killed):
        path.write_bytes(registered.read_bytes())
    first = search(undisturbed)
    for count in KILLED_AFTER:
        kill_after(count, killed, data)
        left = samples(killed)
        assert count <= len(left) < len(samples(undisturbed))
    assert search(killed) == first
    assert samples(killed) == samples(undisturbed)
    assert left.items() <= samples(killed).items()
