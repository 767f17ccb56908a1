"""`lop db backup|restore|check` and `lop model remove`, as they are typed."""

import json
import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lop.cli import app
from pruning.errors import ConflictError, NotFoundError
from storage.sql_repository import open_repository
from tests.service.made_up import register_model


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
