"""A database that is away when a process starts."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pruning.errors import SchemaRevisionError, StorageUnavailableError
from service import waiting
from service.waiting import wait_for_database, wait_for_schema
from storage.sql_repository import open_repository
from tests.postgres import PostgresServer, postgres_server

__all__ = ["postgres_server"]

POSTGRES = "postgresql://lop@db/lop"


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was waited for, without waiting."""
    found: list[float] = []
    monkeypatch.setattr("threading.Event.wait", lambda _, seconds=None: found.append(seconds))
    return found


class Away:
    """Raises so often, then answers."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __call__(self) -> str:
        self.times -= 1
        if self.times >= 0:
            raise StorageUnavailableError("the PostgreSQL server must answer")
        return "open"


def test_it_is_waited_for_longer_and_longer(pauses: list[float], caplog: pytest.LogCaptureFixture) -> None:
    assert wait_for_database(POSTGRES, Away(7)) == "open"
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    assert "trying again in 30 s: the PostgreSQL server must answer" in caplog.text


def test_what_waiting_does_not_mend_is_raised(pauses: list[float]) -> None:
    def older() -> str:
        raise SchemaRevisionError("older")

    with pytest.raises(SchemaRevisionError):
        wait_for_database(POSTGRES, older)
    with pytest.raises(StorageUnavailableError):
        wait_for_database("sqlite:///lop.db", Away(1))
    assert pauses == []


def test_an_older_schema_is_waited_for(pauses: list[float], caplog: pytest.LogCaptureFixture) -> None:
    said: list[bool | StorageUnavailableError] = [StorageUnavailableError("away"), False, False, True]

    def is_ours() -> bool:
        if isinstance(next_one := said.pop(0), StorageUnavailableError):
            raise next_one
        return next_one

    wait_for_schema(is_ours, 60)
    assert pauses == [1, 1, 1]
    away, older = [record.getMessage() for record in caplog.records]
    assert away == "waiting: away"
    assert "lop db upgrade" in older


def test_a_schema_that_does_not_come_is_told(pauses: list[float]) -> None:
    with pytest.raises(SchemaRevisionError, match="lop db upgrade"):
        wait_for_schema(lambda: False, 0)
    assert pauses == []


def test_a_signal_ends_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    before = signal.getsignal(signal.SIGTERM)

    def stopped() -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        raise StorageUnavailableError("away")

    assert wait_for_database(POSTGRES, stopped) is None
    assert signal.getsignal(signal.SIGTERM) is before
    assert "stopped before" in caplog.text


def test_it_goes_on_when_the_database_comes_back(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(waiting, "FIRST_PAUSE_SECONDS", 0.02)
    name = postgres_server.create_database(migrated=True)
    url = postgres_server.url(name)
    postgres_server.execute(f"ALTER DATABASE {name} RENAME TO {name}_gone")
    opened = []
    thread = threading.Thread(target=lambda: opened.append(wait_for_database(url, lambda: open_repository(url))))
    thread.start()
    while "trying again" not in caplog.text:
        time.sleep(0.01)
    assert opened == []
    postgres_server.execute(f"ALTER DATABASE {name}_gone RENAME TO {name}")
    thread.join()
    [repository] = opened
    assert repository is not None
    assert repository.list_models() == []
    repository.close()
    postgres_server.drop_database(name)


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_the_commands_wait_and_stop_when_they_are_told_to(command: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    url = "postgresql://lop@127.0.0.1:9/lop"  # nobody listens to this port
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "lop.cli", command, "--database", url], stdout=output, stderr=output, cwd=tmp_path
        )
    try:
        while "trying again in 1 s" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()
