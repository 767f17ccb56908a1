"""Marks stay while nothing is committed, and are others after every commit of whomever."""

from datetime import timedelta
from pathlib import Path

from storage.sql_repository import SqlRepository, open_repository
from tests.storage.examples import job

STALE = timedelta(hours=1)


def test_a_mark_is_another_one_after_every_commit(filled: SqlRepository) -> None:
    mark = filled.commit_mark()
    assert mark is not None
    assert filled.commit_mark() == mark
    filled.list_jobs()
    assert filled.commit_mark() == mark
    added, _ = filled.add_job(job(1))  # by another connection of this process
    after = filled.commit_mark()
    assert after != mark
    assert filled.commit_mark() == after
    filled.cancel_job(added.id, stale_after=STALE)
    assert filled.commit_mark() != after


def test_marks_of_two_connections_are_not_equal(filled: SqlRepository) -> None:
    mark = filled.commit_mark()
    filled.close()
    assert filled.commit_mark() not in (mark, None)


def test_a_file_that_is_replaced_or_gone(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with open_repository(f"sqlite:///{path}", create=True) as repository:
        mark = repository.commit_mark()
        path.rename(tmp_path / "b.db")
        assert repository.commit_mark() is None
        open_repository(f"sqlite:///{path}", create=True).close()
        assert repository.commit_mark() not in (mark, None)
