"""Jobs in SQL: rows that workers claim with one conditional UPDATE, and what happened to them, numbered job by job."""

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    Update,
    and_,
    bindparam,
    case,
    false,
    func,
    literal,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.orm import Session

from pruning.errors import ConflictError, InputError
from storage.contract import Jobs
from storage.documents import json_document
from storage.records import JobEvent, JobEventKind, JobProgress, JobRecord, JobSignal, JobStatus, NewJob, StagePoint
from storage.rows import job_event, job_record
from storage.sql_store import SqlStore, require
from storage.tables import JobEventRow, JobRow, UtcDateTime

_REMEDY = "List the jobs with `lop job list`"
_AGAIN = (JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.PARKED)
_SIGNAL = select(JobRow.is_cancelling).where(
    JobRow.id == bindparam("job_id"), JobRow.worker == bindparam("worker"), JobRow.status == JobStatus.RUNNING.value
)


class JobStore(SqlStore, Jobs):
    """`storage.contract.Jobs` in SQL."""

    def add_job(self, job: NewJob) -> tuple[JobRecord, bool]:
        settings = json_document(job.settings, "the settings of a job")
        values = {
            "id": uuid.uuid4().hex,
            "kind": job.kind,
            "model_id": job.model_id,
            "settings": settings,
            "status": JobStatus.QUEUED.value,
            "is_cancelling": False,
            "asked_by": job.asked_by,
            "idempotency_key": job.idempotency_key,
            "attempts": 0,
            "num_events": 0,
            "created_at": datetime.now(UTC),
        }
        with self._writing() as session:
            if self._insert_new(session, JobRow, [values]):
                row = _row(session, str(values["id"]))
                _tell_status(session, row)
                return job_record(row), True
            same = (JobRow.asked_by == job.asked_by, JobRow.idempotency_key == job.idempotency_key)
            stored = job_record(session.scalars(select(JobRow).where(*same)).one())
        if (stored.kind, stored.settings) != (job.kind, settings):
            raise ConflictError(
                "an idempotency key stands for one request",
                values=f"{job.idempotency_key!r} was given for job {stored.id}, with other settings",
                remedy="Use another key for another request",
            )
        return stored, False

    def get_job(self, job_id: str) -> JobRecord:
        with self._reading() as session:
            return job_record(_row(session, job_id))

    def list_jobs(
        self,
        *,
        status: JobStatus | None = None,
        kind: str | None = None,
        model_id: str | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[JobRecord]:
        query = select(JobRow).where(*_filters(status, kind, model_id)).order_by(JobRow.number.desc())
        with self._reading() as session:
            return [job_record(row) for row in session.scalars(query.limit(limit).offset(offset))]

    def count_jobs(
        self, *, status: JobStatus | None = None, kind: str | None = None, model_id: str | None = None
    ) -> int:
        query = select(func.count()).select_from(JobRow).where(*_filters(status, kind, model_id))
        with self._reading() as session:
            return session.scalar(query) or 0

    def job_counts(self) -> dict[tuple[str, str], int]:
        query = select(JobRow.kind, JobRow.status, func.count()).group_by(JobRow.kind, JobRow.status)
        with self._reading() as session:
            return {(kind, status): number for kind, status, number in session.execute(query)}

    def claim_job(
        self, worker: str, *, stale_after: timedelta, kinds: Sequence[str] | None = None, max_attempts: int = 3
    ) -> JobRecord | None:
        if stale_after < timedelta(0):
            raise InputError("stale_after must not be negative", values=repr(stale_after))
        of_kinds = true() if kinds is None else JobRow.kind.in_(kinds)
        claimable = and_(of_kinds, or_(JobRow.status == JobStatus.QUEUED, self._lost(stale_after)))
        # SKIP LOCKED: a worker takes the next job instead of waiting for the one that another is just taking.
        # SQLite has no such clause, and needs none: the whole statement runs under its one write lock.
        oldest = (
            select(JobRow.number)
            .where(claimable)
            .order_by(JobRow.number)
            .limit(1)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        now = self._now()
        claim = (
            update(JobRow)
            .where(JobRow.number == oldest, claimable)
            .values(
                status=JobStatus.RUNNING,
                worker=worker,
                heartbeat_at=now,
                started_at=now,
                attempts=JobRow.attempts + 1,
                progress=None,
            )
        )
        with self._writing() as session:
            self._end_lost(session, stale_after, max_attempts)
            row = _changed(session, claim)
            if row is None:
                return None
            _tell_status(session, row)
            return job_record(row)

    def heartbeat_job(self, job_id: str, worker: str) -> JobSignal:
        return self.report_job(job_id, worker)

    def job_signal(self, job_id: str, worker: str) -> JobSignal:
        is_cancelling = self._read_one(_SIGNAL, job_id=job_id, worker=worker)
        if is_cancelling is None:
            return JobSignal.LOST
        return JobSignal.CANCEL if is_cancelling else JobSignal.CONTINUE

    def report_job(
        self,
        job_id: str,
        worker: str,
        *,
        progress: JobProgress | None = None,
        as_event: bool = False,
        log: Sequence[str] = (),
    ) -> JobSignal:
        values: dict[str, Any] = {"heartbeat_at": self._now()}
        events = [(JobEventKind.LOG, {"line": line}) for line in log]
        if progress is not None:
            values["progress"] = progress.document()
            if as_event:
                events.append((JobEventKind.PROGRESS, progress.document()))
        with self._writing() as session:
            row = _changed(session, _owned(job_id, worker).values(values))
            if row is None:
                return JobSignal.LOST
            _tell(session, row, events)
            return JobSignal.CANCEL if row.is_cancelling else JobSignal.CONTINUE

    def finish_job(
        self,
        job_id: str,
        worker: str,
        *,
        result: dict[str, Any] | None = None,
        error: str | None = None,
        cancelled: bool = False,
    ) -> bool:
        outcome = None if result is None else json_document(result, "the result of a job")
        status = JobStatus.DONE if error is None else JobStatus.FAILED
        if cancelled:
            status = JobStatus.CANCELLED
        return self._leave(job_id, worker, status=status, result=outcome, error=error, finished_at=self._now())

    def release_job(self, job_id: str, worker: str) -> bool:
        is_wanted = JobRow.is_cancelling == false()
        return self._leave(
            job_id,
            worker,
            status=case((is_wanted, JobStatus.QUEUED.value), else_=JobStatus.CANCELLED.value),
            finished_at=case((is_wanted, None), else_=self._now()),
            worker=None,
            heartbeat_at=None,
            attempts=JobRow.attempts - 1,
        )

    def cancel_job(self, job_id: str, *, stale_after: timedelta) -> JobRecord:
        with self._writing() as session:
            idle = or_(JobRow.status == JobStatus.QUEUED, self._lost(stale_after))
            row = _changed(
                session,
                update(JobRow)
                .where(JobRow.id == job_id, idle)
                .values(status=JobStatus.CANCELLED, finished_at=self._now()),
            )
            if row is None:  # a worker has it, or it has ended
                running = (JobRow.id == job_id, JobRow.status == JobStatus.RUNNING, JobRow.is_cancelling == false())
                row = _changed(session, update(JobRow).where(*running).values(is_cancelling=True))
            if row is not None:
                _tell_status(session, row)
                return job_record(row)
            found = job_record(_row(session, job_id))
        if found.is_cancelling or found.status is JobStatus.CANCELLED:
            return found
        raise ConflictError(
            "a job that has ended cannot be cancelled", values=f"job {job_id} is {found.status}", remedy=_REMEDY
        )

    def retry_job(self, job_id: str) -> JobRecord:
        again: dict[str, Any] = {
            "status": JobStatus.QUEUED,
            "is_cancelling": False,
            "attempts": 0,
            "worker": None,
            "heartbeat_at": None,
            "started_at": None,
            "finished_at": None,
            "progress": None,
            "error": None,
        }
        ended = (JobRow.id == job_id, JobRow.status.in_(_AGAIN))
        with self._writing() as session:
            row = _changed(session, update(JobRow).where(*ended).values(again))
            if row is not None:
                _tell_status(session, row)
                return job_record(row)
            found = job_record(_row(session, job_id))
        raise ConflictError(
            "only a job that failed, was cancelled or parked is queued again",
            values=f"job {job_id} is {found.status}",
            remedy="Ask for a new job instead" if found.status is JobStatus.DONE else "Wait for it, or cancel it first",
        )

    def list_job_events(self, job_id: str, *, after: int = 0, limit: int | None = None) -> list[JobEvent]:
        query = select(JobEventRow).where(JobEventRow.job_id == job_id, JobEventRow.number > after)
        with self._reading() as session:
            return [job_event(row) for row in session.scalars(query.order_by(JobEventRow.number).limit(limit))]

    def best_over_steps(self, job_id: str, *, parts: int) -> list[StagePoint]:
        document = JobEventRow.document
        stage, best = document["stage"].as_string(), document["best"].as_float()
        done, total = document["done"].as_integer(), document["total"].as_integer()
        told = (
            select(
                JobEventRow.number.label("number"),
                stage.label("stage"),
                done.label("done"),
                best.label("best"),
                # The part of a step: 0 for the first ones.
                (((done - 1) * parts) // case((total > 0, total), else_=1)).label("part"),
            )
            .where(JobEventRow.job_id == job_id, JobEventRow.kind == JobEventKind.PROGRESS, best.is_not(None))
            .subquery()
        )
        began = select(told.c.stage, func.min(told.c.number).label("number")).group_by(told.c.stage).subquery("began")
        last = func.max(told.c.done)
        query = (
            select(told.c.stage, last, func.min(told.c.best))  # best never grows: its least is that of the last step
            .join(began, began.c.stage == told.c.stage)
            .group_by(began.c.number, told.c.stage, told.c.part)
            .order_by(began.c.number, last)
        )
        with self._reading() as session:
            return [StagePoint(stage, done, best) for stage, done, best in session.execute(query)]

    def last_job_log(self, job_id: str, limit: int) -> list[str]:
        query = select(JobEventRow.document).where(JobEventRow.job_id == job_id, JobEventRow.kind == JobEventKind.LOG)
        with self._reading() as session:
            last = session.scalars(query.order_by(JobEventRow.number.desc()).limit(limit)).all()
        return [str(document["line"]) for document in reversed(last)]

    def _leave(self, job_id: str, owner: str, **values: Any) -> bool:
        """End the worker's claim; False if it has none."""
        with self._writing() as session:
            row = _changed(session, _owned(job_id, owner).values(is_cancelling=False, **values))
            if row is not None:
                _tell_status(session, row)
            return row is not None

    def _end_lost(self, session: Session, stale_after: timedelta, max_attempts: int) -> None:
        """Jobs that lost their worker and are not to be claimed again: cancelled, or parked."""
        lost = self._lost(stale_after)
        reason = (
            f"{max_attempts} workers were lost while they ran this job: killed for their memory, or crashed. "
            "Look at the log of the last one, "
        )
        ends: tuple[tuple[ColumnElement[bool], dict[str, Any]], ...] = (
            (JobRow.is_cancelling == true(), {"status": JobStatus.CANCELLED}),
            (
                JobRow.attempts >= max_attempts,
                {
                    "status": JobStatus.PARKED,
                    "error": literal(reason) + func.coalesce(JobRow.worker, "") + ", then queue it again with "
                    "`lop job retry`",
                },
            ),
        )
        for applies, values in ends:
            found = select(JobRow.number).where(lost, applies).with_for_update(skip_locked=True)
            ended = update(JobRow).where(JobRow.number.in_(found), lost, applies)
            ended = ended.values(values | {"finished_at": self._now(), "is_cancelling": False})
            for row in session.scalars(_returning(ended)).all():
                _tell_status(session, row)

    def _lost(self, stale_after: timedelta) -> ColumnElement[bool]:
        """Running, without a sign of life for that long; or with one from as far in the future."""
        return and_(
            JobRow.status == JobStatus.RUNNING,
            or_(JobRow.heartbeat_at <= self._now(-stale_after), JobRow.heartbeat_at > self._now(stale_after)),
        )

    def _now(self, offset: timedelta = timedelta(0)) -> ColumnElement[datetime]:
        """The database's clock: workers on several machines share a server, and their own clocks may differ."""
        if self._is_postgresql:
            return func.clock_timestamp(type_=UtcDateTime) + literal(offset)
        return literal(datetime.now(UTC) + offset, UtcDateTime())  # a SQLite file lives on one machine


def _filters(status: JobStatus | None, kind: str | None, model_id: str | None) -> list[ColumnElement[bool]]:
    asked = ((JobRow.status, status), (JobRow.kind, kind), (JobRow.model_id, model_id))
    return [column == value for column, value in asked if value is not None]


def _owned(job_id: str, worker: str) -> Update:
    return update(JobRow).where(JobRow.id == job_id, JobRow.worker == worker, JobRow.status == JobStatus.RUNNING)


def _returning(statement: Update) -> Any:
    return statement.returning(JobRow).execution_options(synchronize_session=False, populate_existing=True)


def _changed(session: Session, statement: Update) -> JobRow | None:
    """The row that the statement changed, as it is now; it is locked until the transaction ends."""
    row: JobRow | None = session.scalars(_returning(statement)).one_or_none()
    return row


def _row(session: Session, job_id: str) -> JobRow:
    query: Select[JobRow] = select(JobRow).where(JobRow.id == job_id)
    return require(session.scalar(query), "job", job_id, _REMEDY)


def _tell_status(session: Session, row: JobRow) -> None:
    """An event of what the job's status has become."""
    document: dict[str, Any] = {"status": row.status, "is_cancelling": row.is_cancelling}
    if row.error is not None:
        document["error"] = row.error
    _tell(session, row, [(JobEventKind.STATUS, document)])


def _tell(session: Session, row: JobRow, events: Sequence[tuple[JobEventKind, dict[str, Any]]]) -> None:
    """Events of a row that this transaction has changed, and so locked: their numbers are without gaps."""
    if not events:
        return
    now = datetime.now(UTC)
    session.add_all(
        JobEventRow(job_id=row.id, number=number, kind=kind.value, document=document, created_at=now)
        for number, (kind, document) in enumerate(events, start=row.num_events + 1)
    )
    row.num_events += len(events)
    session.flush()
