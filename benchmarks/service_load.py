"""A load generator that costs little: one HTTP/1.1 request over and over, on kept-alive connections, in one process.

A Python client that builds every request anew takes longer than the servers here, and would hide their difference.

`python -m benchmarks.service_load '{"urls": [...], "method": ..., "path": ..., "body": ..., "headers": {...}, ...}'`
prints requests a second, percentiles of their milliseconds, and how many answers were no success.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np

CONNECTIONS = 16
_ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a server stood."""

    per_second: float
    p50_ms: float
    p99_ms: float
    failed: int


def load(
    urls: Sequence[str],
    method: str,
    path: str,
    body: str = "",
    *,
    headers: Mapping[str, str] | None = None,
    seconds: float,
    connections: int = CONNECTIONS,
) -> Loaded:
    """Ask `urls` in turn, connection by connection, from a process of its own; `headers` beside the usual ones."""
    asked = {"urls": list(urls), "method": method, "path": path, "body": body, "headers": dict(headers or {})}
    command = [sys.executable, "-m", "benchmarks.service_load"]
    command.append(json.dumps({**asked, "seconds": seconds, "connections": connections}))
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True)  # noqa: S603
    return Loaded(**json.loads(done.stdout))


class _Connection(asyncio.Protocol):
    """Sends the request again whenever its answer is whole."""

    def __init__(self, request: bytes, until: float, ended: asyncio.Future[None]) -> None:
        self._request, self._until, self._ended = request, until, ended
        self._read = b""
        self._sent = 0.0
        self.spent: list[float] = []
        self.failed = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, separator, body = self._read.partition(b"\r\n\r\n")
        if not separator or len(body) < _length(head):
            return
        now = time.perf_counter()
        self.spent.append(now - self._sent)
        self.failed += not head.startswith(b"HTTP/1.1 2")
        self._read = b""
        if now < self._until:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.failed += exc is not None
        if not self._ended.done():
            self._ended.set_result(None)

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self._request)


def _same(connection: _Connection) -> _Connection:
    """What makes a protocol, where it is made already."""
    return connection


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise ValueError("an answer without a Content-Length is not counted here")


async def _main(asked: dict[str, Any]) -> Loaded:
    body = asked["body"].encode()
    until = time.perf_counter() + asked["seconds"]
    loop = asyncio.get_running_loop()
    protocols, waiting = [], []
    for number in range(asked["connections"]):
        url = httpx.URL(asked["urls"][number % len(asked["urls"])])
        lines = [f"{asked['method']} {asked['path']} HTTP/1.1", f"Host: {url.host}"]
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"] if body else []
        lines += [f"{name}: {value}" for name, value in asked["headers"].items()]
        request = "\r\n".join([*lines, "", ""]).encode() + body
        ended = loop.create_future()
        made = _Connection(request, until, ended)
        await loop.create_connection(partial(_same, made), url.host, url.port or 80)
        protocols.append(made)
        waiting.append(ended)
    started = time.perf_counter()
    await asyncio.gather(*waiting)
    elapsed = time.perf_counter() - started
    spent = np.concatenate([protocol.spent for protocol in protocols]) * 1e3
    failed = sum(protocol.failed for protocol in protocols)
    return Loaded(len(spent) / elapsed, float(np.median(spent)), float(np.quantile(spent, 0.99)), failed)


if __name__ == "__main__":
    found = asyncio.run(_main(json.loads(sys.argv[1])))
    fields = {name: getattr(found, name) for name in Loaded.__slots__}
    print(json.dumps(fields))  # noqa: T201
