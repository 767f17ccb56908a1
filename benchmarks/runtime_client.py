"""What the light client takes to install, and how long, against everything: `pip install lop-service` and its extras.

Both come from one wheel of this checkout, each into an environment of its own, with the versions of constraints.txt,
twice: the first fills pip's cache, so no time has a download in it.
"""

import hashlib
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.child_process import ROOT
from benchmarks.steps import Steps

KINDS = {"light": "", "full": "[server,search,apply]"}
MEGABYTE = 1e6
_PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")

Row = dict[str, Any]


def client_rows(work: Path, steps: Steps) -> list[Row]:
    """A row for each kind of installation. Raises CalledProcessError if pip fails or the command does not start."""
    files = [(ROOT / name).read_bytes() for name in ("constraints.txt", "pyproject.toml")]
    versions = hashlib.sha256(b"".join(files)).hexdigest()[:16]
    return [
        steps.call(
            f"{kind} client",
            [extras, versions],
            partial(_installed, work, kind, extras),
            modules=["benchmarks.runtime_client"],
        ).document
        for kind, extras in KINDS.items()
    ]


def _installed(work: Path, kind: str, extras: str) -> Row:
    wheel = _wheel(work)
    for _ in range(2):
        environment = work / kind
        shutil.rmtree(environment, ignore_errors=True)
        _run(sys.executable, "-m", "venv", str(environment))
        python = str(environment / "bin" / "python")
        before = _size(environment)
        started = time.perf_counter()
        _run(python, *_PIP, "install", "-c", str(ROOT / "constraints.txt"), f"{wheel}{extras}")
        seconds = time.perf_counter() - started
    size = _size(environment) - before
    started = time.perf_counter()
    _run(str(environment / "bin" / "lop"), "plan", "--help")
    first_answer = time.perf_counter() - started
    shutil.rmtree(environment)
    return {"kind": kind, "extras": extras, "bytes": size, "seconds": seconds, "first_command_seconds": first_answer}


def _wheel(work: Path) -> Path:
    """Of this checkout as it is now."""
    folder = work / "wheel"
    shutil.rmtree(folder, ignore_errors=True)
    _run(sys.executable, *_PIP, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    (wheel,) = folder.glob("*.whl")
    return wheel


def _run(*command: str) -> None:
    """What it says goes to stderr: the benchmark's stdout is its result."""
    subprocess.run(command, check=True, stdout=sys.stderr)  # noqa: S603


def _size(folder: Path) -> int:
    """Bytes of all files; links, which an environment has to its Python, count nothing."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def client_figures(rows: list[Row]) -> Row:
    """Size and time of the light client, and over those of everything."""
    light, full = ({row["kind"]: row for row in rows}[kind] for kind in KINDS)
    return {
        "light_client_install_mb": light["bytes"] / MEGABYTE,
        "light_client_install_seconds": light["seconds"],
        "full_install_mb": full["bytes"] / MEGABYTE,
        "full_install_seconds": full["seconds"],
        "light_client_mb_over_full": light["bytes"] / full["bytes"],
        "light_client_seconds_over_full": light["seconds"] / full["seconds"],
    }
