"""What the parts of the SQL repository share: transactions, and inserts that let the first writer win."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar, cast

from sqlalchemy import CursorResult, Engine, Insert, Select, Table, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.errors import ConflictError, NotFoundError
from storage.database import database_errors
from storage.tables import ArtifactRow, Base, CalibrationRow, ModelRow

Row = TypeVar("Row")
Value = TypeVar("Value")


class SqlStore:
    """Transactions over one engine, for any thread; see `storage/contract.py` for what they promise."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._write_engine = engine.execution_options(write=True)
        self._anatomies: dict[str, tuple[datetime, ModelAnatomy]] = {}

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        with database_errors(self._engine), Session(self._engine, autoflush=False) as session:
            yield session

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        """A transaction that is committed at the end of the block, or rolled back if it raises."""
        with (
            database_errors(self._engine),
            Session(self._write_engine, autoflush=False, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    def _read_one(self, query: Select[Value], **values: Any) -> Value | None:
        """The value that a `query` of one column finds first, with `values` for its parameters; None without a row.

        For what every plan request reads: an ORM session and a query built anew take longer than such a query itself.
        """
        with database_errors(self._engine), self._engine.connect() as connection:
            return connection.scalar(query, values)

    def _anatomy(self, session: Session, model_id: str) -> ModelAnatomy:
        """As `_find_anatomy`, of a model that is registered."""
        anatomy = self._find_anatomy(session, model_id)
        assert anatomy is not None
        return anatomy

    def _find_anatomy(self, session: Session, model_id: str) -> ModelAnatomy | None:
        """What samples of the model are read by; None if it is not registered. Read once a registration."""
        registered = session.scalar(select(ModelRow.created_at).where(ModelRow.id == model_id))
        if registered is None:
            return None
        known = self._anatomies.get(model_id)
        if known is None or known[0] != registered:  # removed meanwhile, and registered anew
            document = session.scalars(select(ModelRow.anatomy).where(ModelRow.id == model_id)).one()
            known = self._anatomies[model_id] = (registered, ModelAnatomy.from_dict(document))
        return known[1]

    @property
    def _is_postgresql(self) -> bool:
        return self._engine.dialect.name == "postgresql"

    def _insert_new(self, session: Session, table: type[Base], rows: Sequence[Mapping[str, Any]]) -> int:
        """Insert those of `rows` that break no unique constraint; return how many.

        A row that another transaction is inserting at the moment is waited for, so afterwards one of the two can be
        read.
        """
        target = cast("Table", table.__table__)
        insert: Insert
        if self._is_postgresql:
            insert = postgresql.insert(target).on_conflict_do_nothing()
        else:
            insert = sqlite.insert(target).on_conflict_do_nothing()
        # Without preserve_rowcount SQLAlchemy keeps the count of UPDATE and DELETE only.
        result = session.execute(insert.inline(), list(rows), execution_options={"preserve_rowcount": True})
        return cast("CursorResult[Any]", result).rowcount


def require(row: Row | None, what: str, key: str, remedy: str) -> Row:
    """`row`, or NotFoundError if there is none."""
    if row is None:
        raise NotFoundError(f"no {what} is stored under this id", values=repr(key), remedy=remedy)
    return row


def conflict(what: str, key: str, difference: str, remedy: str = "Use another id") -> ConflictError:
    """The error of writing other content under a key that is taken."""
    return ConflictError(
        f"what is stored is never changed, and this {what} is stored with other content",
        values=f"{key}: {difference}",
        remedy=remedy,
    )


def require_model(session: Session, model_id: str, *, lock: bool = False) -> None:
    """Raises NotFoundError unless the model is stored; with `lock`, its other lockers wait until the commit.

    Without it, too, it stays until the commit, and one that is being removed is waited for: what refers to it would
    break a constraint afterwards. `read` makes that PostgreSQL's FOR KEY SHARE, which a foreign key takes anyway; else
    it is FOR NO KEY UPDATE, which lets rows that refer to the model still be inserted.
    """
    query = select(ModelRow.id).where(ModelRow.id == model_id).with_for_update(key_share=True, read=not lock)
    require(session.scalar(query), "model", model_id, "Register it with `lop model add`")


def require_artifact(session: Session, sha256: str) -> None:
    """Raises NotFoundError unless the artifact is stored; it stays until the commit, as in `require_model`."""
    query = select(ArtifactRow.sha256).where(ArtifactRow.sha256 == sha256)
    known = session.scalar(query.with_for_update(key_share=True, read=True))
    require(known, "artifact", sha256, "Store the bytes with put_artifact first")


def require_calibration(session: Session, calibration_id: str) -> None:
    """Raises NotFoundError unless the calibration set is stored."""
    known = session.scalar(select(CalibrationRow.id).where(CalibrationRow.id == calibration_id))
    require(known, "calibration set", calibration_id, "Store it with add_calibration first")
