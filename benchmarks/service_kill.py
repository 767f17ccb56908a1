"""SIGKILLs at random moments, while jobs run and plans are asked for: what is lost, doubled or stuck after that.

A round: a new database, two servers, three workers; PostgreSQL in every other round. A client hands in two data sets,
registers tiny models, asks for jobs of every kind, and all the time for plans; a request that is not answered, or with
502 or 503, it repeats, jobs under their idempotency key. Meanwhile processes are killed, by a generator seeded with the
round's number: servers, workers, and of PostgreSQL its postmaster or one of its backends. Each is started again at once
(`benchmarks.service_killer`). Few are killed while there are only the first jobs, which the others need, and a worker
has nothing to do. When all jobs have ended, what is stored is compared with a round in which nothing was killed.
`interrupted` counts what a kill took from a worker: claims of jobs that did not end them; `interrupted_by_kind` of
which.

A job that lost three workers is parked, as documented: the product does not go on with it by itself. The client then
asks for that by the product's own `POST /v1/jobs/{id}/retry`, and `parked` counts how often.
"""

import hashlib
import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from benchmarks.service_kill_jobs import (
    APPLIED,
    MODEL,
    PLAN_SPARSITIES,
    RECOVERED,
    differences,
    ended_twice,
    first_jobs,
    interrupted_by_kind,
    other_jobs,
    outcome,
    write_files,
    write_selection,
)
from benchmarks.service_killer import Killer
from benchmarks.service_processes import CODE, Server, WorkerProcess, database, running, wait_until
from benchmarks.steps import Steps, say
from storage.data_store import open_store
from storage.integrity import check_database
from storage.records import JobStatus
from storage.sql_repository import open_repository

NUM_KILLS = 1000
DATABASES = ("sqlite", "postgresql")
NUM_SERVERS, NUM_WORKERS = 2, 3
STALE_SECONDS = 6
MOST_KILLS, MOST_AT_FIRST = 60, 6
"""Of a round, and of the time before the first jobs have ended; what has not ended then goes on in peace."""
PATIENCE_SECONDS = 300.0
MOST_UNEXPECTED = 20
_PASSES = (502, 503)

Row = dict[str, Any]


@dataclass
class Asked:
    """What the client was told, request by request."""

    jobs: dict[str, str] = field(default_factory=dict)
    plans: dict[str, bytes] = field(default_factory=dict)
    planned: dict[float, str] = field(default_factory=dict)
    repeated: int = 0
    unexpected: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)


class Asker:
    """A client that does not give up."""

    def __init__(self, servers: list[Server], asked: Asked, seed: int) -> None:
        self._servers, self.asked = servers, asked
        self._random = random.Random(seed)

    def send(self, method: str, path: str, *, if_done: int | None = None, **options: Any) -> httpx.Response:
        """The first answer that is one, of any server; raises RuntimeError if there is none for minutes.

        `if_done` is a status that says so, too, but for the first time: a server may be killed after it has done what
        it was asked for, before it says so.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        asked_before = False
        while time.monotonic() < deadline:
            server = self._random.choice(self._servers)
            try:
                answer = httpx.request(method, f"{server.url}{path}", timeout=30, **options)
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code not in _PASSES:
                if answer.is_success or (asked_before and answer.status_code == if_done):
                    return answer
                self.asked.unexpected.append(f"{answer.status_code} {method} {path} {options}: {answer.text[:300]}")
                if len(self.asked.unexpected) > MOST_UNEXPECTED:
                    raise RuntimeError(f"the service refuses what it should not: {self.asked.unexpected[-1]}")
            self.asked.repeated += 1
            asked_before = True
            time.sleep(0.1)
        raise RuntimeError(f"{method} {path} is not answered")

    def job(self, settings: Row) -> str:
        """Ask for a job, now and then twice; the id that all answers have."""
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        ids = {
            self.send("POST", "/v1/jobs", json=settings, headers={"Idempotency-Key": key}).json()["id"]
            for _ in range(1 + self._random.randrange(2))
        }
        if len(ids) > 1:
            self.asked.doubled.append(f"{len(ids)} jobs of one idempotency key")
        found = ids.pop()
        self.asked.jobs[found] = key
        return str(found)

    def plan(self, sparsity: float) -> str:
        """The id of a uniform plan; its bytes are kept."""
        answer = self.send("POST", "/v1/plans", json={"model": MODEL, "sparsity": sparsity, "method": "uniform"})
        plan_id = str(answer.json()["plan_id"])
        if self.asked.plans.setdefault(plan_id, answer.content) != answer.content:
            self.asked.doubled.append(f"plan {plan_id} in two forms")
        if (first := self.asked.planned.setdefault(sparsity, plan_id)) != plan_id:
            self.asked.doubled.append(f"plans {first} and {plan_id} for sparsity {sparsity}")
        return plan_id


def kill(folder: Path, steps: Steps, *, num_kills: int = NUM_KILLS) -> tuple[Row, list[Row]]:
    """Summary and rows: rounds until there are enough kills; each round is a step."""
    rows: list[Row] = []
    modules = (__name__, *CODE)
    undisturbed = steps.call(
        "kill nothing", [], partial(_round, folder / "undisturbed", "sqlite", 0, 0, None), modules=modules
    ).document["outcome"]
    while (done := sum(row["kills"] for row in rows)) < num_kills:
        seed = len(rows)
        kind = DATABASES[seed % len(DATABASES)]
        most = min(MOST_KILLS, num_kills - done)
        run = partial(_round, folder / f"round-{seed}", kind, seed, most, undisturbed)
        row = steps.call(f"kill round {seed}", [kind, str(most)], run, modules=modules).document
        rows.append({"part": "kill", "database": kind, "round": seed, **row})
        say(f"kill: {done + row['kills']} of {num_kills}")
    names = ("lost", "doubled", "stuck", "different", "unexpected", "parked", "interrupted")
    total: Row = {name: sum(row[name] for row in rows) for name in names}
    interrupted: Counter[str] = Counter()
    for row in rows:
        interrupted.update(row["interrupted_by_kind"])
    return {"kill_count": sum(row["kills"] for row in rows), **total, "interrupted_by_kind": dict(interrupted)}, rows


def _round(folder: Path, kind: str, seed: int, most: int, undisturbed: Row | None) -> Row:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    root, data = write_files(folder)
    selection = write_selection(folder)
    with database(kind, folder) as (url, server):
        servers = [Server(url, folder, name=f"server-{number}") for number in range(NUM_SERVERS)]
        options = ("--stale-seconds", str(STALE_SECONDS))
        workers = [
            WorkerProcess(url, folder, roots=root, name=f"worker-{number}", options=options)
            for number in range(NUM_WORKERS)
        ]
        asked = Asked()
        with running(*servers, *workers):
            killer = Killer([*servers, *workers], server, url, seed, min(most, MOST_AT_FIRST))
            killer.start()
            try:
                parked = _ask_all(data, selection, servers, asked, seed, lambda: setattr(killer, "most", most))
            except RuntimeError as error:
                if killer.error is not None:  # what is no longer started again answers nobody
                    raise killer.error from error
                raise
            finally:
                killer.stopping.set()
                killer.join()
            if killer.error is not None:
                raise killer.error
            killer.revive()
            wait_until(lambda: all(one.is_ready for one in servers), "the servers", seconds=PATIENCE_SECONDS)
            asker = Asker(servers, asked, seed)
            gone = [path for path, content in _told(asked) if asker.send("GET", path).content != content]
        with open_repository(url) as repository:
            found = outcome(repository, folder / "output")
            jobs = repository.list_jobs()
            twice = ended_twice(repository, jobs)
            interrupted = interrupted_by_kind(repository, jobs)
        wrong = [str(finding) for finding in check_database(url, open_store(str(folder / "store"))).findings]
    row: Row = {"kills": sum(killer.kills.values()), "killed": dict(killer.kills), "repeated": asked.repeated}
    if undisturbed is None:
        check_undisturbed(found, asked)
        return {**row, "outcome": found, "examples": asked.unexpected}
    compared = differences(found, undisturbed)
    lost = compared["lost"] + gone + [job for job in asked.jobs if job not in {one.id for one in jobs}]
    doubled = compared["doubled"] + asked.doubled + [f"job {job} ended twice" for job in twice]
    doubled += [f"job {one.id} that nobody asked for" for one in jobs if one.id not in asked.jobs]
    stuck = [f"job {one.id} is {one.status}" for one in jobs if not one.status.is_final]
    different = compared["different"] + wrong
    shutil.rmtree(folder / "models")
    return {
        **row,
        "jobs": len(jobs),
        "plans": len(asked.plans),
        "interrupted": sum(interrupted.values()),
        "interrupted_by_kind": interrupted,
        "lost": len(lost),
        "doubled": len(doubled),
        "stuck": len(stuck),
        "different": len(different),
        "unexpected": len(asked.unexpected),
        "parked": parked,
        "examples": [*lost, *doubled, *stuck, *different, *asked.unexpected][:20],
    }


def check_undisturbed(found: Row, asked: Asked) -> None:
    """What the others are held against must itself be whole: raises RuntimeError if it is not."""
    failed = [f"{name}: {result}" for name, result in found["jobs"].items() if result["status"] != JobStatus.DONE.value]
    missing = [part for part in ("jobs", "samples", "searches", "predictors", "models", "files") if not found[part]]
    if wrong := [*failed, *missing, *asked.doubled, *asked.unexpected]:
        raise RuntimeError(f"where nothing was killed, not everything came to its end: {wrong[:5]}")


def _told(asked: Asked) -> list[tuple[str, bytes]]:
    return [(f"/v1/plans/{plan_id}", content) for plan_id, content in asked.plans.items()]


def _ask_all(
    data: Path, selection: Path, servers: list[Server], asked: Asked, seed: int, after_first: Callable[[], object]
) -> int:
    """Ask for all jobs, and for plans until they have ended; how often one was parked. `after_first` is called when
    the first jobs have ended."""
    asker = Asker(servers, asked, seed)
    dataset, judged = (_uploaded(asker, folder) for folder in (data, selection))
    parked = finish(asker, first_jobs(dataset))
    plans = {sparsity: asker.plan(sparsity) for sparsity in (*APPLIED, RECOVERED)}
    after_first()
    more, others = random.Random(seed), other_jobs(dataset, judged, plans)
    more.shuffle(others)  # to ask takes as long as the kills: what is asked for first is hit most
    return parked + finish(
        asker,
        [[job] for job in others],
        meanwhile=lambda: asker.plan(more.choice(PLAN_SPARSITIES)),
    )


def finish(
    asker: Asker,
    chains: list[list[Row]],
    *,
    meanwhile: Callable[[], object] = lambda: None,
) -> int:
    """Ask for the first job of each chain and, when it has ended, for the next, until all have, or none has for
    minutes; how often one was parked."""
    parked = 0
    waiting = {asker.job(first): rest for first, *rest in chains}
    last = time.monotonic()
    while waiting and time.monotonic() < last + PATIENCE_SECONDS:
        meanwhile()
        for job_id in sorted(waiting):
            status = asker.send("GET", f"/v1/jobs/{job_id}").json()["status"]
            if status == JobStatus.PARKED:
                parked += 1
                asker.send("POST", f"/v1/jobs/{job_id}/retry", if_done=409)
            elif JobStatus(status).is_final:
                if rest := waiting.pop(job_id):
                    waiting[asker.job(rest[0])] = rest[1:]
                last = time.monotonic()
        time.sleep(0.1)
    return parked


def _uploaded(asker: Asker, folder: Path) -> str:
    """The id of the data set in `folder`."""
    headers = {"Content-Type": "application/x-tar"}
    return str(asker.send("POST", "/v1/datasets", content=_archive(folder), headers=headers).json()["id"])


def _archive(data: Path) -> bytes:
    import io
    import tarfile

    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w") as tar:
        tar.add(data, arcname=".")
    return memory.getvalue()
