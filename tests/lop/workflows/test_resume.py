"""A search that is killed half-way and run again ends as an undisturbed one; no sample is lost or doubled."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pruning.anatomy.architecture import Architecture
from storage.sql_repository import open_repository

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(database: Path, data: Path) -> list[str]:
    return [
        sys.executable, "-m", "lop.cli", "search", "-m", "tiny", "-d", str(data), "-s", "0.3", "-s", "0.6", "-n", "40",
        "--num-levels", "6", "--json", "--database", f"sqlite:///{database}",
    ]  # fmt: skip


def samples(database: Path) -> dict[Architecture, float]:
    rows = open_repository(f"sqlite:///{database}").list_samples("tiny")
    found = {row.architecture: row.metrics.kl for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.parametrize("killed_after", [5, 45])
def test_sigkill_then_run_again(registered: Path, data: Path, tmp_path: Path, killed_after: int) -> None:
    undisturbed, killed = tmp_path / "a.db", tmp_path / "b.db"
    for path in (undisturbed, killed):
        path.write_bytes(registered.read_bytes())
    first = subprocess.run(command(undisturbed, data), env=ENVIRONMENT, capture_output=True, text=True, check=True)

    process = subprocess.Popen(
        command(killed, data), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    repository = open_repository(f"sqlite:///{killed}")
    while repository.count_samples("tiny") < killed_after:
        assert process.poll() is None, "the search ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = samples(killed)
    assert killed_after <= len(left) < len(samples(undisturbed))

    again = subprocess.run(command(killed, data), env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert json.loads(again.stdout) == json.loads(first.stdout)
    assert samples(killed) == samples(undisturbed)
    assert left.items() <= samples(killed).items()
