"""A process that is ended has a line said for it; one that ends by itself has not."""

import subprocess
import sys

import pytest

BEGIN = "import os, signal; from engines.ray.last_words import LastWords; words = LastWords('gone'); "


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("words.withdraw()", ""),
        ("words.withdraw(); os._exit(1)", ""),
        ("os._exit(1)", "gone\n"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "gone\n"),
        ("words._listener.kill(); words._listener.wait(); words.withdraw()", ""),
    ],
)
def test_a_line_is_said_for_a_process_that_is_ended(end: str, said: str) -> None:
    done = subprocess.run([sys.executable, "-c", BEGIN + end], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("", said)
