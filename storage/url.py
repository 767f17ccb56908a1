"""Database URLs: which ones are understood, and how they are shown without their password."""

from pathlib import Path
from typing import Final

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from pruning.errors import InputError

_DRIVERS: Final = {
    "sqlite": "sqlite+pysqlite",
    "sqlite+pysqlite": "sqlite+pysqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
_SECRET_OPTIONS: Final = frozenset({"password", "sslpassword"})  # libpq also takes secrets as URL options
_REMEDY: Final = "Use sqlite:///path/to/file.db or postgresql://user:password@host:5432/name"


def parse_url(text: str) -> URL:
    """`text` as a SQLAlchemy URL with the driver spelled out; a SQLite path is made absolute.

    Raises InputError for what is not a URL, for a scheme other than sqlite and postgresql, and for a SQLite URL without
    a file: a database in memory is lost with its connection, and every thread has its own.
    """
    # Only the scheme is shown: what cannot be parsed may hold a password anywhere.
    scheme = text.partition("://")[0] if "://" in text else ""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        if _has_cut_password(text):
            raise _cut_password(scheme, text) from error
        values = f"{scheme}://..." if scheme else "text without a scheme"
        raise InputError("the database must be a URL", values=values, remedy=_REMEDY) from error
    if url.password is not None and _has_cut_password(text):
        raise _cut_password(scheme, text)
    driver = _DRIVERS.get(url.drivername)
    if driver is None:
        raise InputError("the database must be SQLite or PostgreSQL", values=f"{scheme}://...", remedy=_REMEDY)
    url = url.set(drivername=driver)
    if driver == "sqlite+pysqlite":
        if not url.database or url.database == ":memory:" or url.database.startswith("file:") or url.host or url.query:
            raise InputError("a SQLite URL must name a file and nothing else", values=masked(url), remedy=_REMEDY)
        url = url.set(database=str(Path(url.database).absolute()))
    return url


def _cut_password(scheme: str, text: str) -> InputError:
    """Shows what follows the last @ only: everything before it may be the password."""
    return InputError(
        "an @ in a database's password must be written as %40, since it ends the password otherwise",
        values=f"{scheme}://***@{text.rpartition('@')[2]}",
        remedy=_REMEDY,
    )


def _has_cut_password(text: str) -> bool:
    """Whether, after the @ that ends the password, there is another where a URL has none: it ended before its end."""
    after_login = text.partition("://")[2].partition(":")[2].partition("@")[2]
    place, _, query = after_login.partition("?")
    return "@" in place or any("@" in option.partition("=")[0] for option in query.split("&"))


def masked(url: URL) -> str:
    """The URL as a user would type it, without driver and with `***` for each secret."""
    query = {key: "***" if key in _SECRET_OPTIONS else value for key, value in url.query.items()}
    shown = url.set(drivername=url.get_backend_name(), query=query).render_as_string(hide_password=True)
    return shown.replace("%2A%2A%2A", "***")


def without_secrets(url: URL, text: str) -> str:
    """`text` from a driver or server, with the secrets of `url` blanked out should it repeat them."""
    options = [url.query[key] for key in _SECRET_OPTIONS if key in url.query]
    for secret in (url.password, *options):
        if isinstance(secret, str) and secret:
            text = text.replace(secret, "***")
    return text
