"""A database that a command of an operator tidies, while servers and workers go on."""

from typing import Self

from storage.database import check_revision, create_database_engine
from storage.sql_store import SqlStore
from storage.url import parse_url


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
