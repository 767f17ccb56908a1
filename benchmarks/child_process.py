"""What a command takes, measured from a process that does nothing else: `python -m benchmarks.child_process COMMAND`.

Linux counts to a process's peak what its parent had resident when it was started, so a benchmark that holds a model
cannot start the command itself.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Measured:
    """Wall-clock seconds from start to end, peak resident memory, and what was printed."""

    seconds: float
    peak_rss_bytes: int
    stdout: str


def measure(command: Sequence[str]) -> Measured:
    """Run `command` and measure it; raises RuntimeError with its stderr if it fails."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "benchmarks.child_process", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def _main(command: list[str]) -> int:
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
    seconds = time.perf_counter() - started
    # Kilobytes on Linux, bytes on macOS (getrusage(2)).
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    print(json.dumps({"seconds": seconds, "peak_rss_bytes": peak, "stdout": done.stdout}))  # noqa: T201
    return done.returncode


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
