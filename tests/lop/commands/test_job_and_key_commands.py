"""`lop job` and `lop key`, on a database and on a server."""

import json
import re
from pathlib import Path

import pytest

from lop.workflows.queueing import queue_search
from mcts.settings import SearchSettings
from pruning.data.conversations import load_conversations
from service.keys import KeyRing
from storage.contract import Repository
from storage.data_store import open_store
from storage.records import JobRecord, KeyScope
from tests.lop.commands.test_cli import Run, run

__all__ = ["run"]


@pytest.fixture
def queued(repository: Repository, data: Path, tmp_path: Path) -> JobRecord:
    settings = SearchSettings(sparsities=(0.3,), num_evaluations=5, num_levels=6)
    store = open_store(str(tmp_path / "store"))
    return queue_search(repository, store, "tiny", load_conversations(data, 4), settings, name="data.json")


def test_jobs_of_a_database(run: Run, queued: JobRecord) -> None:
    def ok(*words: object) -> str:
        code, out, err = run("job", *words)
        assert code == 0, err
        return out

    (listed,) = json.loads(ok("list", "--json"))
    assert (listed["id"], listed["asked_by"], listed["status"]) == (queued.id, "command line", "queued")
    assert json.loads(ok("show", queued.id, "--json"))["settings"]["sparsities"] == [0.3]
    assert f"search job {queued.id} of tiny: queued, asked by command line" in ok("show", queued.id)
    assert "cancelled" in ok("cancel", queued.id)
    assert "tiny" in ok("list", "--status", "cancelled", "--kind", "search", "-m", "tiny")
    assert json.loads(ok("list", "--status", "queued", "--json")) == []
    assert json.loads(ok("retry", queued.id, "--json"))["status"] == "queued"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("job", "show", "nope"), "no job is stored under this id"),
        (("job", "list", "--status", "lost"), "known status"),
        (("job", "list", "--kind", "magic"), "known kind"),
        (("job", "list", "--url", "http://x", "--database", "sqlite:///x"), "a server's or a database's"),
        (("worker", "--kinds", "search,magic"), "known kinds"),
        (("key", "create", "n", "--scope", "read", "--expires", "soon"), "hours, days or weeks"),
        (("key", "create", "n", "--scope", "read", "--limit", "much"), "a number of requests in a time"),
        (("key", "revoke", "nope"), "no key is stored under this id"),
    ],
)
def test_mistakes_are_one_line(run: Run, words: tuple[str, ...], message: str) -> None:
    code, out, err = run(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_a_key_is_shown_once(run: Run, repository: Repository) -> None:
    code, out, _ = run("key", "create", "notebook", "--scope", "plan", "--expires", "2w", "--limit", "5/minute")
    assert code == 0
    key = out.strip()
    assert re.fullmatch(r"lop_[0-9a-f]{12}_[\w-]{43}", key)
    asker = KeyRing(lambda: repository, is_loopback=True, limit="1/second").find([f"Bearer {key}"])
    assert (asker.name, asker.scope) == ("notebook", KeyScope.PLAN)
    secret = key.split("_", 2)[2]
    code, out, _ = run("key", "list", "--json")
    (row,) = json.loads(out)
    assert secret not in out
    assert (row["name"], row["scope"], row["limit"], row["revoked"]) == ("notebook", "plan", "5/minute", None)
    assert (row["expires"] > row["created"], row["last used"] is not None) == (True, True)
    table = run("key", "list")[1]
    assert row["id"] in table
    assert f"until {row['expires'][:10]}" in table
    assert run("key", "revoke", row["id"])[0] == 0
    assert "revoked" in run("key", "list")[1]
    assert json.loads(run("key", "list", "--json")[1])[0]["revoked"] is not None
