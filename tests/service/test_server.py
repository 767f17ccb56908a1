"""The real process on a real socket."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import httpx
import pytest

from pruning.errors import InputError, SchemaRevisionError, StorageUnavailableError
from service.keys import new_key
from service.server import _listen, serve
from service.settings import Settings
from storage.contract import Repository
from storage.records import KeyScope, NewJob

SERVE = "from service.server import serve; from service.settings import load_settings; serve(load_settings())"


@contextmanager
def running(database_url: str, log: Path, **variables: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The server on a free loopback port, and its URL; killed at the end if it still runs."""
    environment = os.environ | {"LOP_DATABASE_URL": database_url, "LOP_PORT": "0"} | variables
    with log.open("wb") as stderr:
        process = subprocess.Popen([sys.executable, "-c", SERVE], env=environment, stderr=stderr)
    try:
        while (found := re.search(r"listening on (http://127\.0\.0\.1:\d+)", log.read_text())) is None:
            assert process.poll() is None, log.read_text()
            time.sleep(0.02)
        yield process, found[1]
    finally:
        process.kill()
        process.wait()


def test_the_server_serves_until_sigterm(database_url: str, repository: Repository, tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with running(database_url, log) as (process, url), httpx.Client(base_url=url, timeout=30) as client:
        assert client.get("/healthz").json() == {"status": "alive"}
        assert client.get("/readyz").json() == {"status": "ready"}
        answer = client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.5})
        assert answer.status_code == 201
        assert client.get(answer.headers["location"]).content == answer.content
        head = client.head("/v1/models/tiny/ranking")
        assert int(head.headers["content-length"]) > 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        text = log.read_text()
        assert re.search(r'INFO service\.access method=POST path="/v1/plans" status=201 duration_ms=[\d.]+', text)
        assert "Traceback" not in text
        assert text.rstrip().endswith("service stopped")


def test_running_requests_end_before_the_server_does(database_url: str, repository: Repository, tmp_path: Path) -> None:
    with running(database_url, tmp_path / "server.log") as (process, url):
        address = httpx.URL(url)
        body = b'{"model": "tiny", "sparsity": 0.5}'
        with socket.create_connection((address.host, address.port or 0)) as connection:
            connection.sendall(
                b"POST /v1/plans HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n" % len(body)
            )
            connection.sendall(body[:10])
            httpx.get(f"{url}/healthz")  # the server has read what came before
            process.send_signal(signal.SIGTERM)
            while True:
                # The port closes first; the request at hand is still answered.
                with socket.socket() as probe:
                    if probe.connect_ex((address.host, address.port or 0)) != 0:
                        break
            connection.sendall(body[10:])
            assert connection.recv(65536).startswith(b"HTTP/1.1 201 ")
        assert process.wait(30) == 0


def test_sigterm_under_load_ends_streams_and_answers_what_it_took(
    database_url: str, repository: Repository, tmp_path: Path
) -> None:
    queued, _ = repository.add_job(NewJob("train", "tiny", {}, "test"))
    log = tmp_path / "server.log"
    statuses: Counter[int] = Counter()
    with running(database_url, log, LOP_SHUTDOWN_SECONDS="60") as (process, url):

        def ask(number: int) -> None:
            # It ends with what comes after the port was closed.
            with httpx.Client(base_url=url, timeout=30) as client, suppress(httpx.TransportError):
                for n in count():
                    share = (n * 4 + number) % 997 / 2000
                    statuses[client.post("/v1/plans", json={"model": "tiny", "sparsity": share}).status_code] += 1

        with ThreadPoolExecutor(4) as pool, httpx.stream("GET", f"{url}/v1/jobs/{queued.id}/events") as stream:
            lines = stream.iter_lines()
            assert next(lines) == "event: status"
            asking = [pool.submit(ask, number) for number in range(4)]
            while sum(statuses.values()) < 20:
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0  # long before what it may take
            assert not any("error" in line for line in lines)
            for asked in asking:
                asked.result()
        assert set(statuses) <= {200, 201, 503}
        assert "Traceback" not in log.read_text()


def test_other_machines_reach_no_server_without_a_key(database_url: str, repository: Repository) -> None:
    with pytest.raises(InputError, match=r"needs a key.*0\.0\.0\.0.*lop key create"):
        serve(Settings(database_url=database_url, host="0.0.0.0", port=0))
    record, _ = new_key("first", KeyScope.READ)
    repository.add_key(record)
    with socket.create_server(("0.0.0.0", 0)) as taken, pytest.raises(InputError, match="LOP_PORT"):
        serve(Settings(database_url=database_url, host="0.0.0.0", port=taken.getsockname()[1]))


def test_a_data_store_that_is_none_is_told_at_the_start(database_url: str) -> None:
    with pytest.raises(InputError, match="a folder or an address"):
        serve(Settings(database_url=database_url, port=0, data_store="nonsense://x"))


def test_a_taken_port_is_one_line(database_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"127.0.0.1:{port}.*Choose another LOP_PORT"):
            serve(Settings(database_url=database_url, port=port))


def test_a_database_without_our_schema_is_refused_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(StorageUnavailableError, match="lop db upgrade"):
        serve(Settings(database_url=f"sqlite:///{tmp_path}/none.db", port=0))
    (tmp_path / "empty.db").touch()
    with pytest.raises(SchemaRevisionError, match="lop db upgrade"):
        serve(Settings(database_url=f"sqlite:///{tmp_path}/empty.db", port=0))


def test_answers_are_not_held_back_for_an_acknowledgement() -> None:
    with _listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
