"""Whether what is stored is whole: more than any constraint of the database can say."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from pruning.errors import LopError
from storage.data_store import DataStore
from storage.database import check_revision, create_database_engine, database_errors
from storage.rows import model_record, plan_of
from storage.tables import ArtifactRow, Base, DatasetRow, JobEventRow, JobRow, ModelRow, PlanRow
from storage.url import parse_url


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with one thing."""

    what: str
    key: str
    wrong: str


@dataclass(frozen=True, slots=True)
class Report:
    """Rows that there are, table by table, and what is wrong."""

    rows: dict[str, int]
    findings: tuple[Finding, ...]


def check_database(url: str, store: DataStore | None = None) -> Report:
    """Look through the whole database, and with a `store` for the content of every data set.

    Raises SchemaRevisionError, StorageUnavailableError: it is at another revision, or cannot be read at all.
    """
    engine = create_database_engine(parse_url(url))
    try:
        check_revision(engine)
        with database_errors(engine), engine.connect() as connection:
            rows = {
                table.name: connection.scalar(select(func.count()).select_from(table)) or 0
                for table in Base.metadata.sorted_tables
            }
            looks: tuple[Callable[[Connection], Iterator[Finding]], ...] = (_file, _artifacts, _models, _plans, _events)
            found = [finding for look in looks for finding in look(connection)]
            if store is not None:
                found += _datasets(connection, store)
        return Report(rows, tuple(found))
    finally:
        engine.dispose()


def _file(connection: Connection) -> Iterator[Finding]:
    """What SQLite itself can say; PostgreSQL checks its own pages and keys."""
    if connection.dialect.name != "sqlite":
        return
    for (line,) in connection.exec_driver_sql("PRAGMA integrity_check").all():
        if line != "ok":
            yield Finding("file", "", str(line))
    for table, row, referred, _ in connection.exec_driver_sql("PRAGMA foreign_key_check").all():
        yield Finding(str(table), str(row), f"refers to a row of {referred} that is not there")


def _artifacts(connection: Connection) -> Iterator[Finding]:
    for sha256 in connection.scalars(select(ArtifactRow.sha256)).all():  # one by one: each may be large
        content = connection.scalar(select(ArtifactRow.content).where(ArtifactRow.sha256 == sha256))
        found = "nothing" if content is None else hashlib.sha256(content).hexdigest()
        if found != sha256:
            yield Finding("artifact", sha256, f"its content has sha256 {found}")


def _models(connection: Connection) -> Iterator[Finding]:
    for row in connection.execute(select(ModelRow.__table__)):
        try:
            model_record(row)  # type: ignore[arg-type]
        except (LopError, KeyError, TypeError, ValueError) as error:
            yield Finding("model", row.id, f"its anatomy cannot be read: {error!r}"[:300])


def _plans(connection: Connection) -> Iterator[Finding]:
    query = select(PlanRow.id, PlanRow.document).execution_options(yield_per=100)
    for plan_id, document in connection.execute(query):
        try:
            found = plan_of(document).plan_id
        except (LopError, KeyError, TypeError, ValueError) as error:
            yield Finding("plan", plan_id, f"it cannot be read: {error}"[:300])
        else:
            if found != plan_id:
                yield Finding("plan", plan_id, f"its document says {found}")


def _events(connection: Connection) -> Iterator[Finding]:
    """Events of a job are numbered from 1 without gaps: who watches it by number misses none."""
    told = func.count(JobEventRow.number)
    last = func.coalesce(func.max(JobEventRow.number), 0)
    query = (
        select(JobRow.id, JobRow.num_events, told, last)
        .join(JobEventRow, JobEventRow.job_id == JobRow.id, isouter=True)
        .group_by(JobRow.id, JobRow.num_events)
    )
    for job_id, number, there, highest in connection.execute(query):
        if not number == there == highest:
            yield Finding("job", job_id, f"{number} events were told, {there} are there, the last is {highest}")


def _datasets(connection: Connection, store: DataStore) -> Iterator[Finding]:
    for dataset_id in connection.scalars(select(DatasetRow.id)).all():
        if not store.has(dataset_id):
            yield Finding("data set", dataset_id, "its content is not in the data store")
