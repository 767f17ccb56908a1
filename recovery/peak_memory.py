"""How much memory this process has had at most."""

import resource
import sys
from pathlib import Path


def peak_memory_bytes() -> int:
    """Resident bytes.

    Not getrusage's figure on Linux: that counts what the process which started this one had resident at that time, and
    a worker or a benchmark that holds a model would be counted to every training that it starts.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux; macOS counts in bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
