"""What a figure was measured on, and the one form that every result has.

{"machine": {...}, "commit": "...", "measured_at": "...", "code": {...}, "summary": {...}, "rows": [...]}

`measured_at` is UTC, `code` the digest of each source file that ran (`benchmarks.measured_code`). `make results` shows
what was measured with the code as it is.
"""

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.measured_code import measured_code, merged
from pruning.atomic_file import replace_file
from pruning.devices.timing.machine import cpu_model

RESULTS_DIR = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent


def describe_machine() -> dict[str, Any]:
    """The hardware and the versions that figures depend on; `cores` are those that this process may use."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": gpus,
        "os": platform.platform(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def commit() -> str:
    """The checked-out commit, "+dirty" behind it if tracked files differ from it; "unknown" outside of a checkout."""
    try:
        found = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found + ("+dirty" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(  # noqa: S603
        ["git", *arguments],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


COMMIT_AT_START = commit()
"""What ran: a checkout may move on while a benchmark is running."""


def write_results(
    name: str,
    summary: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    *,
    runs: Iterable[str] = (),
    earlier: Iterable[Mapping[str, str]] = (),
) -> Path:
    """Write `results/{name}.json` and return its path.

    Args:
        runs: modules that processes which the benchmark started have run, beside its own (`benchmarks.measured_code`).
        earlier: the code of parts that were measured before, and only read again now.

    Raises ValueError for a figure that is not a finite number and for a module that is not there, OSError if the file
    cannot be written.
    """
    document = {
        "machine": describe_machine(),
        "commit": COMMIT_AT_START,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": merged([measured_code(runs), *earlier]),
        "summary": dict(summary),
        "rows": list(rows),
    }
    content = json.dumps(document, indent=1, allow_nan=False) + "\n"
    RESULTS_DIR.mkdir(exist_ok=True)
    path = RESULTS_DIR / f"{name}.json"
    replace_file(path, content.encode())
    return path
