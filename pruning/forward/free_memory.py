"""How much memory a process may still take on this machine, and how it gives back what it has no use for."""

import ctypes
import math
import sys
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def free_memory_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> float:
    """What Linux says is available, or what the container's limit (cgroup v2) leaves, if that is less.

    Cached file contents, which the kernel gives back when asked, count as free. Infinite where neither is known.
    """
    found = math.inf
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
        found = 1024.0 * int(lines["MemAvailable"].split()[0])
    except (OSError, ValueError, KeyError):
        pass
    try:
        limit, used = (float((cgroup / f"memory.{name}").read_text(encoding="ascii")) for name in ("max", "current"))
        counted = dict(line.split() for line in (cgroup / "memory.stat").read_text(encoding="ascii").splitlines())
        found = min(found, max(0.0, limit - used + float(counted.get("inactive_file", 0))))
    except (OSError, ValueError):  # no such group, or "max": no limit
        pass
    return found


def return_free_memory() -> None:
    """Ask glibc to give back what is free: it keeps gaps between activations, which grow to hundreds of megabytes."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none, and need none
        if trim is not None:
            trim(0)
