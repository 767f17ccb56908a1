"""The files of the replay: a database, what was asked of it, and what was answered.

They are read by `tests/service/test_replay.py` and were written by what is in `replay/make_replay.py.txt`. This module
imports nothing of ours, so that it reads them in whatever tree it stands.
"""

import json
import lzma
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "replay"
DATABASE = FOLDER / "database.sqlite3.xz"
ANSWERS = FOLDER / "plans.json.xz"
SCANS = FOLDER / "scans.json.xz"

LIMITS = ("memory_bytes", "latency_ms", "flops", "disk_bytes")


def write_json(path: Path, document: Any) -> None:
    """Compressed, and the same bytes for the same document."""
    path.write_bytes(
        lzma.compress(json.dumps(document, separators=(",", ":")).encode(), preset=9 | lzma.PRESET_EXTREME)
    )


def read_json(path: Path) -> Any:
    """What `write_json` wrote: numbers come back exactly."""
    return json.loads(lzma.decompress(path.read_bytes()))


def limits_asked(request: dict[str, Any]) -> tuple[str, ...]:
    """The limits that a plan has to keep: a device's memory is one of them, unless a sparsity is asked for."""
    if request["sparsity"] is not None:
        return ("sparsity",)
    budget = request["budget"] or {}
    has_memory = request["device"] is not None
    return tuple(name for name in LIMITS if budget.get(name) is not None or (name == "memory_bytes" and has_memory))
