"""What to say if this process is ended without being asked: by Ray, which ends its drivers when a cluster is lost."""

import subprocess
import sys

# Reads until the pipe closes: with something in it in good order, with nothing if the process is gone.
_LISTENER = "import sys\nif not sys.stdin.buffer.read():\n    print(sys.argv[1], file=sys.stderr)\n"


class LastWords:
    """A line for stderr that another process says if this one ends before `withdraw`."""

    def __init__(self, line: str) -> None:
        # In a session of its own, so that an interrupt from the keyboard reaches only this process.
        self._listener = subprocess.Popen(  # noqa: S603 (this interpreter, a fixed program)
            [sys.executable, "-I", "-S", "-c", _LISTENER, line],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def withdraw(self) -> None:
        """Nothing is to be said."""
        try:
            self._listener.communicate(b".")
        except OSError:  # it was killed, and says nothing
            self._listener.wait()
