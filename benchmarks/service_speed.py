"""How fast plans are served: known ones against a hello-world, new ones beside a search, two servers against one.

- A known plan is a `POST /v1/plans` that was asked before, or a `GET` of it; the answer comes from the database. Beside
  it runs a FastAPI hello-world (`service_hello`) by as many uvicorn processes. Both get the same load in turns, and a
  figure is the median over turns of the quotient within each: machines change speed. A server sends a known plan from
  memory while nothing is committed; a third row is beside a client that commits as a searching worker does, after which
  every plan is read again. These are of a server without keys, which knows everybody on its machine. One with keys, on
  a database of its own, is asked in the same turns: by a key with the server's limit, and by one with its own.
- New plans are of the 32-layer model of `benchmarks.serving` by its predictor, one client, one after another; a worker
  searches the reference model meanwhile, with as many threads as it takes by itself, and then it does not.
- Two servers on one PostgreSQL get the same load as one; ideal is twice the answers. The load generator and PostgreSQL
  need cores too: `cores` of the machine stands in the result.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import numpy as np
import torch

from benchmarks.service_load import Loaded, load
from benchmarks.service_processes import (
    CODE,
    THREADS,
    Child,
    Server,
    WorkerProcess,
    database,
    free_port,
    running,
    wait_until,
)
from benchmarks.service_subject import MODEL, add_made_up_model
from benchmarks.serving import LARGE, ROUND_TO, large_model, milliseconds, register_large
from benchmarks.steps import Steps
from benchmarks.subject import REFERENCE
from lop.client import Client
from pruning.checkpoints.anatomy_reader import anatomy_of
from service.keys import new_key
from storage.contract import Repository
from storage.records import JobProgress, KeyScope, NewJob
from storage.sql_repository import open_repository

TURNS, SECONDS = 9, 5.0
NEW_PLANS, WARM_UP = 200, 10
COMMITS_PER_SECOND = 20.0
"""For a worker that stores evaluations of a small model; one of a large model commits less often."""
SEARCHED, CONVERSATIONS = "searched", 64
_MODULES = (__name__, "benchmarks.service_hello", *CODE)
_ASKED = json.dumps({"model": MODEL, "sparsity": 0.4})
_LIMIT = "1000000/second"
"""Of requests, which none of these loads reaches."""
WITH_KEY, WITH_LIMITED_KEY = "post with key", "post with limited key"

Row = dict[str, Any]


class Hello(Child):
    """`benchmarks.service_hello` at one port."""

    def __init__(self, folder: Path, *, name: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "benchmarks.service_hello", str(self.port)]
        super().__init__(command, folder / f"{name}.log", cwd=Path(__file__).parent.parent)

    @property
    def is_ready(self) -> bool:
        try:
            return httpx.get(self.url, timeout=5).is_success
        except httpx.TransportError:
            return False


def speed(folder: Path, steps: Steps) -> tuple[Row, list[Row]]:
    """Summary and rows."""
    found: Row = {}
    rows: list[Row] = []
    for name, function in (("known", _known_plans), ("searching", _new_plans)):
        run = partial(function, folder / name)
        document = steps.call(f"speed {name}", [], run, modules=_MODULES).document
        rows += [{"part": f"speed {name}", **row} for row in document.pop("rows")]
        found |= document
    return found, rows


def _known_plans(folder: Path) -> Row:
    folder.mkdir(parents=True, exist_ok=True)
    with database("postgresql", folder) as (url, _), database("postgresql", folder) as (keyed_url, _):
        with open_repository(url) as repository:
            add_made_up_model(repository)
        with open_repository(keyed_url) as repository:
            add_made_up_model(repository)
            keys = {WITH_KEY: _new_key(repository), WITH_LIMITED_KEY: _new_key(repository, limit=_LIMIT)}
        servers = [Server(url, folder, name=f"server-{number}") for number in range(2)]
        keyed = Server(keyed_url, folder, name="server-keyed", settings={"LOP_KEY_LIMIT": _LIMIT})
        hellos = [Hello(folder, name=f"hello-{number}") for number in range(2)]
        with running(*servers, keyed, *hellos):
            wait_until(lambda: all(hello.is_ready for hello in hellos), "the hello-world")
            path = _ask(servers[0])
            for headers in keys.values():
                _ask(keyed, headers)
            loads = {
                "hello": partial(load, method="GET", path="/"),
                "post": partial(load, method="POST", path="/v1/plans", body=_ASKED),
                "get": partial(load, method="GET", path=path),
            }
            rows = []
            for turn in range(TURNS + 1):  # the first warms up
                for processes in (1, 2):
                    for name, ask in loads.items():
                        urls = [one.url for one in (hellos if name == "hello" else servers)[:processes]]
                        done = ask(urls, seconds=SECONDS)
                        if turn:
                            rows.append(_row(name, processes, turn, done))
                for name, headers in keys.items():
                    done = loads["post"]([keyed.url], headers=headers, seconds=SECONDS)
                    if turn:
                        rows.append(_row(name, 1, turn, done))
                with committing(url):
                    done = loads["post"]([servers[0].url], seconds=SECONDS)
                if turn:
                    rows.append(_row("post beside commits", 1, turn, done))
    return {**known_figures(rows), "rows": rows}


def _new_key(repository: Repository, *, limit: str | None = None) -> dict[str, str]:
    """The header that sends a new key of the scope that plans take."""
    record, key = new_key("benchmark", KeyScope.PLAN, limit=limit)
    repository.add_key(record)
    return {"Authorization": f"Bearer {key}"}


def _ask(server: Server, headers: Mapping[str, str] | None = None) -> str:
    """Ask for the plan once, which is known from then on; its path."""
    headers = {"Content-Type": "application/json", **(headers or {})}
    answer = httpx.post(f"{server.url}/v1/plans", content=_ASKED, headers=headers)
    return str(answer.raise_for_status().headers["location"])


@contextmanager
def committing(url: str) -> Iterator[None]:
    """Within the block a job tells its progress `COMMITS_PER_SECOND` times a second, each time in a commit."""
    ended = Event()
    with open_repository(url) as repository:
        job, _ = repository.add_job(NewJob("train", MODEL, {"kind": "train", "model": MODEL}, "benchmark"))
        repository.claim_job("benchmark", stale_after=timedelta(hours=1))

        def commit() -> None:
            done = 0
            while not ended.wait(1 / COMMITS_PER_SECOND):
                done += 1
                repository.report_job(job.id, "benchmark", progress=JobProgress(done, 10**6, "committing"))

        thread = Thread(target=commit)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            repository.finish_job(job.id, "benchmark", result={})


def _row(name: str, processes: int, turn: int, done: Loaded) -> Row:
    fields = {field: getattr(done, field) for field in Loaded.__slots__}
    return {"load": name, "processes": processes, "turn": turn, **fields}


def known_figures(rows: list[Row]) -> Row:
    """Medians over turns of the quotients within each; of two processes, shares of twice what one does."""
    at = {(row["load"], row["processes"], row["turn"]): row for row in rows}
    turns = sorted({row["turn"] for row in rows})

    def quotient(above: tuple[str, int], below: tuple[str, int]) -> float:
        return float(np.median([at[*above, turn]["per_second"] / at[*below, turn]["per_second"] for turn in turns]))

    def median(load: str, processes: int, what: str) -> float:
        return float(np.median([at[load, processes, turn][what] for turn in turns]))

    return {
        "cached_plan_rps_vs_hello": quotient(("post", 1), ("hello", 1)),
        "cached_plan_rps_vs_hello_with_key": quotient((WITH_KEY, 1), ("hello", 1)),
        "cached_plan_rps_vs_hello_with_limited_key": quotient((WITH_LIMITED_KEY, 1), ("hello", 1)),
        "cached_plan_rps_vs_hello_two_processes": quotient(("post", 2), ("hello", 2)),
        "read_plan_rps_vs_hello": quotient(("get", 1), ("hello", 1)),
        "cached_plan_rps": median("post", 1, "per_second"),
        "cached_plan_rps_beside_commits": median("post beside commits", 1, "per_second"),
        "cached_plan_rps_beside_commits_vs_hello": quotient(("post beside commits", 1), ("hello", 1)),
        "cached_plan_p99_ms_beside_commits": median("post beside commits", 1, "p99_ms"),
        "cached_plan_p50_ms": median("post", 1, "p50_ms"),
        "cached_plan_p99_ms": median("post", 1, "p99_ms"),
        "hello_rps": median("hello", 1, "per_second"),
        "hello_p99_ms": median("hello", 1, "p99_ms"),
        "two_servers_share_of_ideal": quotient(("post", 2), ("post", 1)) / 2,
        "two_hellos_share_of_ideal": quotient(("hello", 2), ("hello", 1)) / 2,
        "failed_answers": sum(row["failed"] for row in rows),
    }


def _new_plans(folder: Path) -> Row:
    folder.mkdir(parents=True, exist_ok=True)
    with database("postgresql", folder) as (url, _):
        with torch.device("meta"):
            anatomy = anatomy_of(large_model())
        with open_repository(url) as repository:
            register_large(repository, anatomy)
        server = Server(url, folder)
        worker = WorkerProcess(url, folder, roots=REFERENCE, environment={THREADS: None})  # as where it is deployed
        with running(server, worker), Client(server.url) as client:
            dataset = client.upload(REFERENCE / "data" / "calibration.json", conversations=CONVERSATIONS)["id"]
            registered = client.submit({"kind": "register", "model": SEARCHED, "folder": "model", "dataset": dataset})
            registered.wait(timeout_seconds=900)
            search = client.submit(
                {
                    "kind": "search",
                    "model": SEARCHED,
                    "dataset": dataset,
                    "sparsities": [0.5],
                    "evaluations": 1_000_000,
                    "train": False,
                }
            )
            wait_until(lambda: (search.refresh()["progress"] or {}).get("done", 0) > 0, "the search", seconds=600)
            before = search.refresh()["progress"]["done"]
            searching = _milliseconds(server.url, 0)
            evaluated = search.refresh()["progress"]["done"] - before
            search.cancel()
            wait_until(lambda: search.refresh()["status"] == "cancelled", "its end")
            time.sleep(2)
            alone = _milliseconds(server.url, 1)
    return {
        "new_plan_p50_ms_while_searching": float(np.median(searching)),
        "new_plan_p99_ms_while_searching": float(np.quantile(searching, 0.99)),
        "new_plan_p50_ms_alone": float(np.median(alone)),
        "evaluations_meanwhile": evaluated,
        "rows": [{"new_plan_ms": searching, "searching": True}, {"new_plan_ms": alone, "searching": False}],
    }


def _milliseconds(url: str, seed: int) -> list[float]:
    """Of each new plan, one client."""
    rng = np.random.default_rng(seed)
    usual = {"model": LARGE, "round_to": ROUND_TO, "method": "lop"}
    with httpx.Client(base_url=url, timeout=120) as client:
        spent = [
            milliseconds(client, usual | {"sparsity": float(sparsity)})
            for sparsity in rng.uniform(0.1, 0.75, WARM_UP + NEW_PLANS)
        ]
    return spent[WARM_UP:]
