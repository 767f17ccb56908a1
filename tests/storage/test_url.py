"""storage/url.py"""

from pathlib import Path

import pytest

from pruning.errors import InputError
from storage.url import masked, parse_url, without_secrets


def test_sqlite_path_becomes_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    url = parse_url("sqlite:///some/store.db")
    assert (url.drivername, url.database) == ("sqlite+pysqlite", str(tmp_path / "some/store.db"))


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_postgresql_takes_psycopg(scheme: str) -> None:
    url = parse_url(f"{scheme}://me:secret@db.example:5433/lop?sslmode=require")
    assert url.drivername == "postgresql+psycopg"
    assert (url.username, url.password, url.host, url.port, url.database) == ("me", "secret", "db.example", 5433, "lop")
    assert url.query == {"sslmode": "require"}


def test_unix_socket_stays_in_the_query() -> None:
    url = parse_url("postgresql://postgres:@/postgres?host=/tmp/socket")
    assert (url.host, url.query["host"], url.database) == (None, "/tmp/socket", "postgres")  # noqa: S108


@pytest.mark.parametrize(
    "text",
    [
        "mysql://u:hunter2@h/d",
        "postgresql+psycopg2://u:hunter2@h/d",
        "postgresql://u:hunter2@h:port/d",
        "hunter2",
        "",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file:a.db?uri=true",
        "sqlite:///a.db?password=hunter2",
        "sqlite://u:hunter2@host/a.db",
    ],
)
def test_refused_without_showing_the_password(text: str) -> None:
    with pytest.raises(InputError, match=r"Use sqlite:///path/to/file\.db or postgresql://") as caught:
        parse_url(text)
    assert "hunter2" not in str(caught.value)


def test_masked_hides_every_secret_and_the_driver() -> None:
    url = parse_url("postgresql://me:hunter2@h:5432/d?sslpassword=hunter3&sslmode=require")
    shown = masked(url)
    assert shown == "postgresql://me:***@h:5432/d?sslmode=require&sslpassword=***"
    assert without_secrets(url, "password hunter2 or hunter3 is wrong") == "password *** or *** is wrong"


def test_masked_sqlite_is_what_a_user_types(tmp_path: Path) -> None:
    assert masked(parse_url(f"sqlite:///{tmp_path}/a b.db")) == f"sqlite:///{tmp_path}/a b.db"


@pytest.mark.parametrize(
    "secret", ["hunter@2", "hunter@2@", "hunter@a/2", "hunter@a:2", "hunter@a?2", "hunter@a#2", "@hunter", "h:unter@2"]
)
def test_a_password_with_an_at_sign_is_shown_up_to_the_last_one(secret: str) -> None:
    with pytest.raises(InputError, match="%40") as caught:
        parse_url(f"postgresql://me:{secret}@db.example:5433/lop")
    message = str(caught.value)
    assert "postgresql://***@db.example:5433/lop" in message
    assert "hunter" not in message
    assert "2@" not in message


@pytest.mark.parametrize(
    ("text", "password", "host"),
    [
        ("postgresql://me:hunter%402@h/d", "hunter@2", "h"),
        ("postgresql://me@server:pw@h/d", "pw", "h"),  # as Azure names users
        ("postgresql://me:pw@h/d?application_name=a@b", "pw", "h"),
        ("postgresql://me:p/w@h/d", "p/w", "h"),
    ],
)
def test_at_signs_that_are_at_their_place(text: str, password: str | None, host: str) -> None:
    url = parse_url(text)
    assert (url.password, url.host) == (password, host)
