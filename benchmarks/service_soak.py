"""Half an hour of mixed traffic on one server over PostgreSQL, with a worker: does memory grow, do connections pile up?

Clients ask, each from a generator of its own: for new plans and known ones, models, devices, lists, jobs that they
cancel or let run, event streams that they leave in the middle, pages, metrics, and what the server refuses. Every few
seconds the server's resident memory is noted, its open sockets, and its connections to PostgreSQL. Memory at the end is
the median of the last minute, and compared with the median of the minute that follows the fifth.
"""

import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.service_kill_jobs import FOLDER, write_files
from benchmarks.service_processes import CODE, Postgres, Server, WorkerProcess, database, running
from benchmarks.service_subject import MODEL, add_made_up_model
from benchmarks.steps import Steps, say
from lop.client import Client
from storage.sql_repository import open_repository

MINUTES, SETTLED_MINUTES = 30.0, 5.0
NUM_CLIENTS = 6
NOTED_SECONDS = 5.0
SEARCHED = "searched"

Row = dict[str, Any]


class Traffic:
    """What clients do, and what they are answered."""

    def __init__(self, url: str, dataset: str) -> None:
        self._url, self._dataset = url, dataset
        self.stopping = threading.Event()
        self.answers: Counter[str] = Counter()
        self._lock = threading.Lock()

    def ask(self, number: int) -> None:
        """One client, until it is told to stop."""
        draw = random.Random(number)
        kinds: list[Callable[[httpx.Client, random.Random], None]] = [
            self._new_plan,
            self._new_plan,
            self._known_plan,
            self._known_plan,
            self._reading,
            self._page,
            self._refused,
            self._job,
            self._stream,
        ]
        with httpx.Client(base_url=self._url, timeout=60) as client:
            while not self.stopping.is_set():
                try:
                    draw.choice(kinds)(client, draw)
                except Exception as error:  # noqa: BLE001 (of an answer that is not what it should be, too)
                    self._note(type(error).__name__)
                time.sleep(draw.uniform(0, 0.05))

    def _note(self, status: object) -> None:
        with self._lock:
            self.answers[str(status)] += 1

    def _send(self, client: httpx.Client, method: str, path: str, **options: Any) -> httpx.Response:
        answer = client.request(method, path, **options)
        self._note(answer.status_code)
        return answer

    def _new_plan(self, client: httpx.Client, draw: random.Random) -> None:
        asked = {"model": MODEL, "sparsity": draw.uniform(0, 0.8), "method": draw.choice([None, "uniform", "mcts"])}
        self._send(client, "POST", "/v1/plans", json=asked)

    def _known_plan(self, client: httpx.Client, draw: random.Random) -> None:
        asked = {"model": MODEL, "sparsity": draw.randrange(1, 8) / 10}
        answer = self._send(client, "POST", "/v1/plans", json=asked)
        if answer.is_success:
            self._send(client, "GET", answer.headers["location"])

    def _reading(self, client: httpx.Client, draw: random.Random) -> None:
        paths = ("/v1/models", "/v1/devices", "/v1/jobs?limit=5", f"/v1/models/{MODEL}/ranking", "/metrics", "/readyz")
        self._send(client, "GET", draw.choice(paths))

    def _page(self, client: httpx.Client, draw: random.Random) -> None:
        sparsity = f"/explorer?model={MODEL}&sparsity={draw.uniform(0, 0.8):.3f}"
        self._send(client, "GET", draw.choice(("/", sparsity, "/jobs", "/compare", "/devices/l4")))

    def _refused(self, client: httpx.Client, draw: random.Random) -> None:
        body = draw.choice((b"[" * 5000, b"{}", b"\xff" * 100, b"x" * 100_000))
        self._send(client, "POST", "/v1/plans", content=body, headers={"Content-Type": "application/json"})

    def _job(self, client: httpx.Client, draw: random.Random) -> None:
        time.sleep(draw.uniform(0, 2))
        asked = {"kind": "search", "model": SEARCHED, "dataset": self._dataset, "sparsities": [0.4], "train": False}
        asked |= {"evaluations": 12, "num_levels": 6, "seed": draw.randrange(1000)}
        job = self._send(client, "POST", "/v1/jobs", json=asked).raise_for_status().json()
        if draw.random() < 0.7:
            self._send(client, "DELETE", f"/v1/jobs/{job['id']}")

    def _stream(self, client: httpx.Client, draw: random.Random) -> None:
        jobs = self._send(client, "GET", "/v1/jobs?limit=5").raise_for_status().json()["items"]
        if not jobs:
            return
        until = time.monotonic() + draw.uniform(0, 3)
        with (
            suppress(httpx.ReadTimeout),
            client.stream("GET", f"/v1/jobs/{draw.choice(jobs)['id']}/events", timeout=3) as answer,
        ):
            self._note(answer.status_code)
            for _ in answer.iter_lines():
                if time.monotonic() > until:
                    break


def soak(folder: Path, steps: Steps, *, minutes: float = MINUTES) -> tuple[Row, list[Row]]:
    """Summary and rows."""
    run = partial(_soak, folder, minutes)
    document = steps.call("soak", [str(minutes)], run, modules=(__name__, *CODE)).document
    rows = [{"part": "soak", **row} for row in document.pop("rows")]
    return document, rows


def _soak(folder: Path, minutes: float) -> Row:
    folder.mkdir(parents=True, exist_ok=True)
    root, data = write_files(folder)
    with database("postgresql", folder) as (url, postgres):
        assert postgres is not None
        with open_repository(url) as repository:
            add_made_up_model(repository)
        server, worker = Server(url, folder), WorkerProcess(url, folder, roots=root)
        with running(server, worker):
            with Client(server.url) as client:
                dataset = client.upload(data / "conversations.json")["id"]
                asked = {"kind": "register", "model": SEARCHED, "folder": FOLDER, "dataset": dataset}
                client.submit(asked).wait(timeout_seconds=600)
            traffic = Traffic(server.url, dataset)
            clients = [
                threading.Thread(target=traffic.ask, args=(number,), daemon=True) for number in range(NUM_CLIENTS)
            ]
            for thread in clients:
                thread.start()
            rows = _watched(server, postgres, minutes)
            traffic.stopping.set()
            for thread in clients:
                thread.join(120)
    return {**soak_figures(rows, minutes), **_answered(traffic.answers), "rows": rows}


def _watched(server: Server, postgres: Postgres, minutes: float) -> list[Row]:
    assert server.pid is not None
    process, started, rows = psutil.Process(server.pid), time.monotonic(), []
    while (elapsed := time.monotonic() - started) < minutes * 60:
        rows.append(
            {
                "seconds": round(elapsed, 1),
                "rss_bytes": process.memory_info().rss,
                "sockets": len(process.net_connections(kind="all")),
                "threads": process.num_threads(),
                "database_connections": postgres.num_connections(),
            }
        )
        if len(rows) % 60 == 0:
            say(f"soak: {rows[-1]}")
        time.sleep(NOTED_SECONDS)
    return rows


def soak_figures(rows: list[Row], minutes: float) -> Row:
    """Of what was noted; a shorter run settles for a sixth of its time."""
    settled = min(SETTLED_MINUTES, minutes / 6) * 60
    span = min(60.0, settled)
    early = [row["rss_bytes"] for row in rows if settled <= row["seconds"] < settled + span]
    late = [row["rss_bytes"] for row in rows if row["seconds"] >= minutes * 60 - span]
    half = len(rows) // 2
    return {
        "soak_minutes": minutes,
        "soak_memory_growth": statistics.median(late) / statistics.median(early) - 1,
        "soak_memory_bytes": statistics.median(late),
        "soak_most_sockets": max(row["sockets"] for row in rows),
        "soak_most_sockets_first_half": max(row["sockets"] for row in rows[:half]),
        "soak_most_database_connections": max(row["database_connections"] for row in rows),
    }


def _answered(answers: Counter[str]) -> Row:
    errors = {status: count for status, count in answers.items() if not status.isdigit() or int(status) >= 500}
    return {
        "soak_requests": sum(answers.values()),
        "soak_server_errors": sum(errors.values()),
        "soak_answers": dict(sorted(answers.items())),
    }
