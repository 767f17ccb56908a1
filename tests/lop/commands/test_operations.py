"""`lop db backup|restore|check|remove-plans|remove-jobs|remove-datasets` and `lop model remove`, as they are typed."""

import json
import os
import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lop.cli import app
from pruning.errors import ConflictError, InputError, NotFoundError, SchemaRevisionError, StorageUnavailableError
from storage.data_store import FolderStore
from storage.database import upgrade
from storage.records import NewJob, PlanRecord
from storage.sql_repository import open_repository
from tests.service.made_up import register_model
from tests.storage.examples import dataset, plan, store_basics


def run(*words: object, expected: int = 0) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == expected, done.output
    return done.stdout


def test_a_copy_a_check_and_a_removal(tmp_path: Path) -> None:
    first, second, file = f"sqlite:///{tmp_path}/a.db", f"sqlite:///{tmp_path}/b.db", tmp_path / "backup.db"
    with open_repository(first, create=True) as repository:
        register_model(repository)
    assert "2 rows" in run("db", "backup", file, "--database", first)
    assert json.loads(run("db", "restore", file, "--database", second, "--json"))["rows"]["models"] == 1
    assert "all is well in 2 rows" in run("db", "check", "--database", second)
    shown = run("model", "remove", "tiny", "--database", second)
    assert "Nothing was removed: that takes --yes" in shown
    assert json.loads(run("model", "remove", "tiny", "--yes", "--database", second, "--json"))["rows"]["artifacts"] == 1
    with pytest.raises(NotFoundError, match="lop model list"):
        run("model", "remove", "tiny", "--yes", "--database", second)
    with pytest.raises(ConflictError):
        run("db", "restore", file, "--database", first)
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE artifacts SET content = x'00'")
    connection.close()
    [found] = json.loads(run("db", "check", "--database", f"sqlite:///{file}", "--json", expected=1))["findings"]
    assert found["what"] == "artifact"
    assert "its content has sha256" in run("db", "check", "--database", f"sqlite:///{file}", expected=1)


def test_waiting_for_the_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    with pytest.raises(StorageUnavailableError):
        run("db", "wait", "--minutes", "0", "--database", url)
    assert not (tmp_path / "a.db").exists()
    monkeypatch.setattr("threading.Event.wait", lambda *_: upgrade(url))
    assert "at the revision of this version" in run("db", "wait", "--database", url)
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    monkeypatch.setattr("threading.Event.wait", pytest.fail)
    with pytest.raises(SchemaRevisionError, match="newer"):
        run("db", "wait", "--database", url)


def test_old_plans(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    with open_repository(url, create=True) as repository:
        store_basics(repository)
        repository.add_plan(PlanRecord("asked", plan()))  # of years ago
    words = ("db", "remove-plans", "--older-than", "90d", "--database", url)
    assert "1 plans of before" in (shown := run(*words))
    assert "Nothing was removed: that takes --yes" in shown
    found = json.loads(run(*words, "--yes", "--json"))
    assert (found["removed"], found["by_model"], found["needed"]) == (True, {"m": 1}, 0)
    assert "removed 0 plans" in run(*words, "--yes")
    with pytest.raises(InputError, match="hours, days or weeks"):
        run("db", "remove-plans", "--older-than", "soon", "--database", url)
    with pytest.raises(StorageUnavailableError):
        run("db", "remove-plans", "--older-than", "1d", "--database", f"sqlite:///{tmp_path}/none.db")
    assert not (tmp_path / "none.db").exists()


def test_old_jobs(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    with open_repository(url, create=True) as repository:
        job, _ = repository.add_job(NewJob("search", "m", {"sparsities": [0.5]}, "somebody"))
        repository.cancel_job(job.id, stale_after=timedelta(seconds=60))
    words = ("db", "remove-jobs", "--database", url)
    assert "0 jobs that ended before" in run(*words, "--older-than", "1h")
    shown = run(*words, "--older-than", "0h")
    assert ("1 jobs that ended before" in shown, "(1 cancelled)" in shown) == (True, True)
    assert "Nothing was removed: that takes --yes" in shown
    found = json.loads(run(*words, "--older-than", "0h", "--yes", "--json"))
    assert (found["removed"], found["by_status"]) == (True, {"cancelled": 1})
    assert "removed 0 jobs" in run(*words, "--older-than", "0h", "--yes")
    with pytest.raises(StorageUnavailableError):
        run("db", "remove-jobs", "--older-than", "1d", "--database", f"sqlite:///{tmp_path}/none.db")


def test_old_datasets(tmp_path: Path) -> None:
    url, store = f"sqlite:///{tmp_path}/a.db", tmp_path / "data"
    (tmp_path / "packed").write_text("packed")
    sha256 = FolderStore(store).put(tmp_path / "packed")
    os.utime(store / sha256[:2] / sha256, (0, 0))
    with open_repository(url, create=True) as repository:
        repository.add_dataset(dataset(sha256))  # of years ago
    words = ("db", "remove-datasets", "--older-than", "90d", "--database", url, "--store", str(store))
    shown = run(*words)
    assert ("1 data sets of before" in shown, "5.00 GB, would go" in shown) == (True, True)
    assert "Nothing was removed: that takes --yes" in shown
    elsewhere = run(*words[:-1], str(tmp_path), "--yes")
    assert ("removed 0 data sets" in elsewhere, "--yes --absent" in elsewhere) == (True, True)
    found = json.loads(run(*words, "--yes", "--json"))
    del found["before"]
    assert found == {"removed": True, "count": 1, "size_bytes": 5_000_000_000, "needed": 0, "absent": 0}
    assert not FolderStore(store).has(sha256)
    assert "removed 0 data sets" in run(*words, "--yes")
