"""Running Alembic from code: from an installed package, in any working directory, on a connection that is given."""

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, inspect, text

REVISIONS: Final[tuple[str, ...]] = ("0001", "0002", "0003", "0004", "0005", "0006", "0007")
"""Every schema revision, oldest first; the last one is what this code reads and writes.

Spelled out so that checking a database at every start does not import Alembic; a test compares it with the scripts.
"""

SCRIPT_LOCATION: Final = Path(__file__).resolve().parent.parent / "migrations"
VERSION_TABLE: Final = "alembic_version"


def read_revision(connection: Connection) -> str | None:
    """The revision that the database says it is at, or None if it was never migrated."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    # One line of history: more than one row means that something else wrote the table, and matches no revision.
    rows = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE} ORDER BY version_num")).scalars().all()  # noqa: S608
    return ", ".join(rows) or None


def run_migrations(connection: Connection) -> None:
    """Bring the database to the newest revision, inside the transaction that `connection` is in."""
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(SCRIPT_LOCATION).replace("%", "%%"))
    command.upgrade(config, "head")
