"""What `bench-service` starts: a PostgreSQL of its own, servers and workers, each a process that can be killed."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from benchmarks.steps import say
from storage.database import upgrade

STARTUP_SECONDS = 300.0
CODE = ("lop.commands.serve", "lop.commands.worker")
"""What servers and workers run."""
THREADS = "OMP_NUM_THREADS"
_PROGRAM = [sys.executable, "-m", "lop.cli"]


class Postgres:
    """A private server with one database at our revision."""

    def __init__(self, folder: Path) -> None:
        # Without a private runtime folder a dependency of pgserver warns when it is imported.
        runtime = folder.parent / "runtime"
        runtime.mkdir(mode=0o700)
        os.environ.setdefault("XDG_RUNTIME_DIR", str(runtime))
        import pgserver

        logging.getLogger("pgserver").setLevel(logging.CRITICAL)
        self._server = pgserver.get_server(folder, cleanup_mode="delete")
        self._folder = folder
        self.url: str = self._server.get_uri()
        upgrade(self.url)

    def kill(self) -> bool:
        """SIGKILL to the postmaster; those that it started see that, and end. Whether there was one."""
        import psutil

        with suppress(psutil.NoSuchProcess):
            postmaster = psutil.Process(self._pid())
            postmaster.kill()
            postmaster.wait(STARTUP_SECONDS)  # one that is just ending would be taken for one that runs by `start`
            return True
        return False

    def kill_backend(self, number: int) -> bool:
        """SIGKILL to one of its processes, drawn by `number`: all connections break, and the server recovers.

        Whether there was one.
        """
        import psutil

        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(self._pid()).children()
            if children:
                children[number % len(children)].kill()
                return True
        return False

    def start(self) -> None:
        """Start again, with what was committed; waits for what the one before left in shared memory."""
        deadline = time.monotonic() + STARTUP_SECONDS
        while True:
            try:
                self._server.ensure_postgres_running()
            except subprocess.SubprocessError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            else:
                return

    def num_connections(self) -> int:
        """Of clients, but for the one that asks."""
        import psycopg

        with psycopg.connect(self.url) as connection:
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            ).fetchone()
        return 0 if row is None else int(row[0])

    def close(self) -> None:
        """Stop it and remove its folder."""
        self._server.cleanup()

    def _pid(self) -> int:
        return int((self._folder / "postmaster.pid").read_text().split()[0])


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A server for the time of the block."""
    # A socket's path has about 100 characters at most, and another user must get through to it.
    with TemporaryDirectory(prefix="lop-pg-") as folder:
        Path(folder).chmod(0o755)
        server = Postgres(Path(folder) / "data")
        try:
            yield server
        finally:
            server.close()


@contextmanager
def database(kind: str, folder: Path) -> Iterator[tuple[str, Postgres | None]]:
    """The URL of a new database of `kind` (sqlite, postgresql) at our revision, and its server."""
    if kind == "postgresql":
        with postgres() as server:
            yield server.url, server
        return
    path = folder / "lop.db"
    for old in folder.glob("lop.db*"):
        old.unlink()
    url = f"sqlite:///{path}"
    upgrade(url)
    yield url, None


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


class Child:
    """A process that is started, killed and started again with the same command; what it says goes to `log`.

    It computes with one thread, so that several share the cores, and has what else is in `environment`: None takes a
    variable away.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str | None] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self._command, self._log, self._cwd = list(command), log, cwd
        wanted = {**os.environ, THREADS: "1", **(environment or {})}
        self._environment = {name: value for name, value in wanted.items() if value is not None}
        self._process: subprocess.Popen[bytes] | None = None
        self._before = 0

    @property
    def said(self) -> str:
        """What it has said since it was started."""
        with self._log.open("rb") as log:
            log.seek(self._before)
            return log.read().decode(errors="replace")

    @property
    def pid(self) -> int | None:
        """None before it is started."""
        return None if self._process is None else self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def is_started(self) -> bool:
        """Whether it does by now what it is for."""
        return self.is_alive

    def start(self) -> None:
        self._before = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603
                self._command, stdout=log, stderr=log, env=self._environment, cwd=self._cwd
            )

    def kill(self) -> bool:
        """SIGKILL; whether it was that which ended it."""
        if self._process is None or self._process.poll() is not None:
            return False
        self._process.kill()
        return self._process.wait() == -signal.SIGKILL

    def stop(self) -> None:
        """SIGTERM, and SIGKILL to what has not ended a minute later."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                say(f"{' '.join(self._command)} did not stop when it was told to")
                self.kill()


class Server(Child):
    """`lop serve` at one port."""

    def __init__(
        self, url: str, folder: Path, *, name: str = "server", settings: Mapping[str, str] | None = None
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [*_PROGRAM, "serve", "--database", url, "--port", str(self.port)]
        environment = {"LOP_DATA_STORE": str(folder / "store"), **(settings or {})}
        super().__init__(command, folder / f"{name}.log", environment=environment)

    @property
    def is_started(self) -> bool:
        return "listening on" in self.said

    @property
    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).is_success
        except httpx.TransportError:
            return False

    def wait(self) -> None:
        """Until it is ready; raises RuntimeError if it ends before."""
        wait_until(lambda: self.is_ready or not self.is_alive, "a server")
        if not self.is_alive:
            raise RuntimeError(f"`lop serve` ended: see {self._log}")


class WorkerProcess(Child):
    """`lop worker`."""

    def __init__(
        self,
        url: str,
        folder: Path,
        *,
        roots: Path | None = None,
        name: str = "worker",
        options: Sequence[str] = (),
        environment: Mapping[str, str | None] | None = None,
    ) -> None:
        command = [*_PROGRAM, "worker", "--database", url, "--poll-seconds", "0.2", "--outputs", str(folder / "output")]
        command += ["--store", str(folder / "store"), "--cache", str(folder / "cache"), *options]
        command += [] if roots is None else ["--model-roots", str(roots)]
        super().__init__(command, folder / f"{name}.log", environment=environment)

    @property
    def is_started(self) -> bool:
        return "waits for jobs" in self.said


def wait_until(is_so: object, what: str, *, seconds: float = STARTUP_SECONDS) -> None:
    """Raises RuntimeError if `is_so()` is not true within `seconds`."""
    assert callable(is_so)
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} was waited for longer than {seconds:.0f} s")
        time.sleep(0.05)


@contextmanager
def running(*children: Child) -> Iterator[None]:
    """Start them, wait for servers, and stop them after the block."""
    try:
        for child in children:
            child.start()
        for child in children:
            if isinstance(child, Server):
                child.wait()
        yield
    finally:
        for child in children:
            child.stop()
