"""Whom `bench-service` kills, on processes that only sleep."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from benchmarks import service_killer
from benchmarks.service_killer import Killer
from benchmarks.service_processes import Child, wait_until
from storage.contract import Repository
from storage.records import NewJob
from storage.sql_repository import open_repository

KILLS = 6


class Sleeper(Child):
    """Whenever it is started, it takes the job of its kind, from itself if need be."""

    def __init__(self, repository: Repository, kind: str, log: Path) -> None:
        super().__init__(["sleep", "60"], log)
        self._repository, self._kind = repository, kind

    def start(self) -> None:
        super().start()
        name = f"a-host-{self.pid}-0"

        def takes() -> bool:
            taken = self._repository.claim_job(
                name, stale_after=timedelta(0), kinds=[self._kind], max_attempts=10 * KILLS
            )
            return taken is not None

        wait_until(takes, f"a {self._kind} job to be taken", seconds=10)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'lop.db'}"


@pytest.fixture
def repository(url: str) -> Iterator[Repository]:
    with open_repository(url, create=True) as repository:
        yield repository


def test_kinds_of_jobs_are_hit_alike(
    repository: Repository, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_killer, "SHARE_AIMED", 1.0)
    monkeypatch.setattr(service_killer, "LONGEST_PAUSE_SECONDS", 0.01)
    children: list[Child] = []
    for kind in ("search", "apply"):
        repository.add_job(NewJob(kind, "m", {}, "somebody"))
        children.append(Sleeper(repository, kind, tmp_path / f"{kind}.log"))
    idle = Child(["sleep", "60"], tmp_path / "idle.log")
    killer = Killer([*children, idle], None, url, 0, KILLS)
    try:
        killer.start()
        wait_until(lambda: killer.error is not None or sum(killer.kills.values()) == KILLS, "the kills", seconds=60)
    finally:
        killer.stopping.set()
        killer.join()
        for child in (*children, idle):
            child.kill()
    assert killer.error is None
    assert killer.kills == {"Sleeper": KILLS}
    assert {job.kind: job.attempts for job in repository.list_jobs()} == {
        "search": 1 + KILLS // 2,
        "apply": 1 + KILLS // 2,
    }


def test_without_a_job_anything_is_killed_and_started_again(repository: Repository, url: str, tmp_path: Path) -> None:
    idle = Child(["sleep", "60"], tmp_path / "idle.log")
    killer = Killer([idle], None, url, 0, 1)
    try:
        killer.revive()
        first = idle.pid
        killer.start()
        wait_until(lambda: killer.error is not None or bool(killer.kills), "a kill", seconds=60)
    finally:
        killer.stopping.set()
        killer.join()
        is_alive = idle.is_alive
        idle.kill()
    assert killer.error is None
    assert killer.kills == {"Child": 1}
    assert is_alive
    assert idle.pid != first
