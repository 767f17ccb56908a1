"""Searches that waited in a database of before there were jobs, and the way back."""

import json
import shutil
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic.util import CommandError
from sqlalchemy import insert, select, text

from mcts.settings import SearchSettings
from storage.database import upgrade
from storage.records import JobStatus
from storage.sql_repository import open_repository
from storage.tables import JobRow
from tests.storage.examples import MORNING, job
from tests.storage.make_asset import ASSETS
from tests.storage.test_migration import OWNER_OF_SEARCHES, SEARCHES_OF_OLD, migrate_to, run_sql, schema

OWNER_OF_SEARCHES_OF_0006 = (
    OWNER_OF_SEARCHES[0],
    text("INSERT INTO models VALUES ('m', '{}', 'w', 's', '/m', '2025-03-01 08:00:00+00:00', NULL)"),
)


def test_searches_that_wait_lose_the_settings_that_there_are_no_more(tmp_path: Path) -> None:
    url = f"sqlite:///{shutil.copyfile(ASSETS / 'revision_0001.sqlite3', tmp_path / 'old.db')}"
    dropped = {"refit_every", "trust_radius", "move_share"}
    with closing(sqlite3.connect(tmp_path / "old.db")) as connection:
        before = [json.loads(row[0]) for row in connection.execute("SELECT settings FROM searches ORDER BY number")]
    assert all(dropped < set(document["search"]) for document in before)
    upgrade(url)
    with open_repository(url) as repository:
        (done,) = repository.list_searches()
        queued, running = repository.list_jobs()
        number = repository.record_search("m", {}, {}).id
        assert repository.list_search_ids("m") == (done.id, number)
    for ended in (running, queued):
        assert (ended.kind, ended.model_id, ended.status) == ("search", "m", JobStatus.FAILED)
        assert "names a file on the server's disk" in str(ended.error)
    assert done.settings == before[0]
    for search, old, sparsity in ((running, before[1], 0.5), (queued, before[2], 0.3)):
        kept = {name: value for name, value in old["search"].items() if name not in dropped}
        assert search.settings == old | {"search": kept}
        assert (search.settings["data"], search.settings["conversations"]) == ("/data/calibration.json", 32)
        assert SearchSettings.from_dict(search.settings["search"]) == SearchSettings(
            sparsities=(sparsity,), num_evaluations=60, seed=7, parallel_leaves=1, temperature=0.03
        )


def test_waiting_searches_of_any_form_upgrade_on_any_database(empty_url: str) -> None:
    rows: list[tuple[str, Any]] = [
        ("queued", {"search": {"seed": 7, "refit_every": 8, "move_share": 0.5}, "data": "d"}),
        ("queued", {"search": 3}),
        ("running", [1]),
        ("failed", {"search": {"refit_every": 8}}),
    ]
    migrate_to(empty_url, "0001")
    run_sql(
        empty_url,
        *OWNER_OF_SEARCHES,
        *(
            insert(SEARCHES_OF_OLD).values(
                id=f"s{n}", number=n, model_id="m", settings=document, status=status, created_at=MORNING, result=None
            )
            for n, (status, document) in enumerate(rows, start=1)
        ),
    )
    upgrade(empty_url)
    left = run_sql(empty_url, select(JobRow.settings).order_by(JobRow.number))
    expected = [{"search": {"seed": 7}, "data": "d"}, {"search": 3}, [1], {"search": {"refit_every": 8}}]
    assert left == [(document,) for document in expected]
    with open_repository(empty_url) as repository:
        (last, *_), events = repository.list_jobs(), repository.list_job_events("s1")
        assert [event.document["status"] for event in events] == ["failed"]
        added, _ = repository.add_job(job())
        assert repository.list_jobs()[:2] == [added, last]  # numbers go on
        assert repository.retry_job("s1").status is JobStatus.QUEUED


def test_0007_can_be_undone_and_what_waited_has_failed(empty_url: str) -> None:
    migrate_to(empty_url, "0006")
    before = schema(empty_url)
    values = {"model_id": "m", "settings": {"data": "/d"}, "created_at": MORNING}
    rows = [("done", {"kl": 0.5}, None), ("failed", None, "why"), ("queued", None, None)]
    run_sql(
        empty_url,
        *OWNER_OF_SEARCHES_OF_0006,
        *(
            insert(SEARCHES_OF_OLD).values(id=f"s{n}", number=n, status=status, result=result, error=error, **values)
            for n, (status, result, error) in enumerate(rows, 1)
        ),
    )
    upgrade(empty_url)
    with open_repository(empty_url) as repository:
        repository.add_job(job())
        with pytest.raises(CommandError, match="revision 0006 cannot hold 1 jobs that wait or run"):
            migrate_to(empty_url, "0006", down=True)
        assert repository.claim_job("w", stale_after=timedelta(hours=1))
        (running, *_) = repository.list_jobs()
        repository.finish_job(running.id, "w", result={})
    migrate_to(empty_url, "0006", down=True)
    assert schema(empty_url) == before
    left = run_sql(empty_url, select(SEARCHES_OF_OLD).order_by(SEARCHES_OF_OLD.c.number))
    assert [(row.id, row.status, row.result) for row in left] == [
        ("s1", "done", {"kl": 0.5}),
        ("s2", "failed", None),
        ("s3", "failed", None),
    ]
    assert left[1].error == "why"
    assert "lop search --queue" in left[2].error
