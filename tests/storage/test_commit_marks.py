"""Marks stay while nothing is committed, and are others after every commit of whomever."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from storage.sql_repository import SqlRepository, open_repository
from tests.storage.examples import job

STALE = timedelta(hours=1)

Read = Callable[[SqlRepository], str | None]


def on_loop(repository: SqlRepository) -> str | None:
    """The mark, read on an event loop of its own."""
    return asyncio.run(repository.commit_mark_on_loop())


@pytest.fixture(params=[SqlRepository.commit_mark, on_loop], ids=["read", "read_on_loop"])
def read(request: pytest.FixtureRequest) -> Read:
    """A way to read marks."""
    found: Read = request.param
    return found


def test_a_mark_is_another_one_after_every_commit(filled: SqlRepository, read: Read) -> None:
    mark = read(filled)
    assert mark is not None
    assert read(filled) == mark
    filled.list_jobs()
    assert read(filled) == mark
    added, _ = filled.add_job(job(1))  # by another connection of this process
    after = read(filled)
    assert after != mark
    assert read(filled) == after
    filled.cancel_job(added.id, stale_after=STALE)
    assert read(filled) != after


def test_marks_of_two_connections_are_not_equal(filled: SqlRepository, read: Read) -> None:
    mark = read(filled)
    filled.close()
    assert read(filled) not in (mark, None)


def test_a_file_that_is_replaced_or_gone(tmp_path: Path, read: Read) -> None:
    path = tmp_path / "a.db"
    with open_repository(f"sqlite:///{path}", create=True) as repository:
        mark = read(repository)
        path.rename(tmp_path / "b.db")
        assert read(repository) is None
        open_repository(f"sqlite:///{path}", create=True).close()
        assert read(repository) not in (mark, None)


def test_both_ways_read_the_same_mark(filled: SqlRepository) -> None:
    assert filled.commit_mark() == on_loop(filled) == on_loop(filled) == filled.commit_mark() != None  # noqa: E711


def test_many_on_one_loop_and_on_several(filled: SqlRepository) -> None:
    """Who finds the connection taken opens another one: nobody waits, and nobody reads another one's answer."""

    async def many() -> list[str | None]:
        return await asyncio.gather(*(filled.commit_mark_on_loop() for _ in range(20)))

    with ThreadPoolExecutor(4) as pool:
        found = [mark for marks in pool.map(lambda _: asyncio.run(many()), range(4)) for mark in marks]
    assert None not in found
    assert all(mark and mark.partition(" ")[2].replace(":", "").replace(",", "").isdigit() for mark in found)


def test_who_is_cancelled_leaves_a_connection_to_the_next(filled: SqlRepository) -> None:
    """Whose answer nobody else reads, and which is closed."""
    before = on_loop(filled)

    async def cancel() -> None:
        for steps in range(6):
            task = asyncio.create_task(filled.commit_mark_on_loop())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(cancel())
    assert on_loop(filled) is not None
    filled.add_job(job(1))
    assert on_loop(filled) != before


def test_closed_while_somebody_reads(filled: SqlRepository) -> None:
    filled.commit_mark()

    async def close() -> str | None:
        task = asyncio.create_task(filled.commit_mark_on_loop())
        await asyncio.sleep(0)
        filled.close()
        return await task

    mark = asyncio.run(close())
    assert on_loop(filled) not in (mark, None)


def test_a_server_that_ends_the_connection(filled: SqlRepository, backend: str) -> None:
    if backend == "sqlite":
        pytest.skip("there is no server")
    mark = on_loop(filled)
    process = filled._marks._connection.info.backend_pid
    with filled._engine.connect() as connection:
        connection.execute(text(f"SELECT pg_terminate_backend({process}, 5000)"))
    assert on_loop(filled) is None
    assert on_loop(filled) not in (mark, None)


def test_a_server_that_does_not_answer(filled: SqlRepository, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "sqlite":
        pytest.skip("there is no server")
    mark = on_loop(filled)
    with monkeypatch.context() as patch:
        patch.setattr("storage.commit_marks.ANSWER_SECONDS", 0.01)
        patch.setattr("storage.commit_marks._POSTGRESQL", "SELECT pg_sleep(2)::text")
        assert on_loop(filled) is None
    assert on_loop(filled) not in (mark, None)


def test_the_kernel_is_told_to_give_up_on_a_host_that_is_gone(filled: SqlRepository, backend: str) -> None:
    if backend == "sqlite":
        pytest.skip("there is no server")
    filled.commit_mark()
    asked = filled._marks._connection.info.get_parameters()
    assert (asked["tcp_user_timeout"], asked["keepalives_idle"], asked["connect_timeout"]) == ("10000", "10", "10")
