"""A database that a command of an operator looks at or tidies, while servers and workers go on."""

from typing import Self

from storage import migration
from storage.database import check_revision, create_database_engine, database_errors
from storage.sql_store import SqlStore
from storage.url import parse_url


def check_schema(url: str) -> bool:
    """Whether the schema of the database at `url` is ours; False: it is older, or not there yet, and can be upgraded.

    Raises SchemaRevisionError if it is newer, StorageUnavailableError if nothing answers.
    """
    engine = create_database_engine(parse_url(url))
    try:
        with database_errors(engine), engine.connect() as connection:
            found = migration.read_revision(connection)
        if found is None or found in migration.REVISIONS[:-1]:
            return False
        check_revision(engine)
        return True
    finally:
        engine.dispose()


class MaintenanceStore(SqlStore):
    """Of one database; open it in a `with` block."""

    @classmethod
    def open(cls, url: str) -> Self:
        """The database at `url`. Raises SchemaRevisionError, StorageUnavailableError: it is at another revision, or
        cannot be read."""
        engine = create_database_engine(parse_url(url))
        try:
            check_revision(engine)
        except BaseException:
            engine.dispose()
            raise
        return cls(engine)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.dispose()
