"""How much memory is free, by what Linux and a container's limit say."""

import math
from pathlib import Path

import pytest

from pruning.forward.free_memory import free_memory_bytes


@pytest.mark.parametrize(
    ("meminfo", "limit", "expected"),
    [
        ("MemTotal: 100 kB\nMemAvailable: 50 kB\n", None, 51_200),
        ("MemTotal: 100 kB\nMemAvailable: 50 kB\n", ("40000", "15000"), 26_000),
        ("MemTotal: 100 kB\nMemAvailable: 50 kB\n", ("max", "15000"), 51_200),
        ("MemTotal: 100 kB\nMemAvailable: 50 kB\n", ("10000", "15000"), 0),
        (None, None, math.inf),
    ],
)
def test_what_is_free(meminfo: str | None, limit: tuple[str, str] | None, expected: float, tmp_path: Path) -> None:
    if meminfo is not None:
        (tmp_path / "meminfo").write_text(meminfo)
    if limit is not None:
        (tmp_path / "memory.max").write_text(f"{limit[0]}\n")
        (tmp_path / "memory.current").write_text(f"{limit[1]}\n")
        (tmp_path / "memory.stat").write_text("anon 9000\ninactive_file 1000\n")
    assert free_memory_bytes(tmp_path / "meminfo", tmp_path) == expected
