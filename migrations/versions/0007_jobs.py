"""Jobs of all kinds in one queue, data sets by content, keys; searches are those that are finished

Searches that waited, ran or failed become jobs: failed ones, since they name a file on a server's disk, which no worker
reads any more. Samples that they stored stay, so that a search that is asked for again goes on from them.

Revision ID: 0007
Revises: 0006
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

NAMES_A_FILE = (
    "a search that names a file on the server's disk is not run any more. Queue it again with "
    "`lop search --queue --data FILE`, which stores the file's content"
)
_LEFT_BEHIND = "migration"
"""Who asked for jobs that were searches."""


def upgrade() -> None:
    rows = _rows("searches")
    op.drop_table("searches")
    op.create_table(
        "searches",
        *_columns_of_both(result_nullable=False),
        sa.Column("space", sa.JSON(none_as_null=True), nullable=True),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_searches_model_id_models"),
        sa.PrimaryKeyConstraint("number", name="pk_searches"),
        sa.UniqueConstraint("id", name="uq_searches_id"),
    )
    op.create_index("ix_searches_model_id_number", "searches", ["model_id", "number"])
    _create_jobs()
    _create_datasets_and_keys()
    kept = ("number", "id", "model_id", "settings", "result", "created_at", "space")
    finished = [row for row in rows if row["status"] == "done" and row["result"] is not None]
    _insert("searches", [{name: row[name] for name in kept} for row in finished])
    others = [row for row in rows if row not in finished]
    _insert("jobs", [_job_of(row) for row in others])
    _insert("job_events", [_event_of(row) for row in others])


def downgrade() -> None:
    refuse_loss()
    searches, jobs = _rows("searches"), _rows("jobs")
    for table in ("keys", "datasets", "job_events", "jobs", "searches"):
        op.drop_table(table)
    # As revisions 0001 and 0005 made it.
    op.create_table(
        "searches",
        sa.Column("number", _row_number(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("worker", sa.String(), nullable=True),
        sa.Column("heartbeat_at", _moment(), nullable=True),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("created_at", _moment(), nullable=False),
        sa.CheckConstraint("status IN ('queued', 'running', 'done', 'failed')", name=op.f("ck_searches_status_known")),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_searches_model_id_models"),
        sa.PrimaryKeyConstraint("number", name="pk_searches"),
        sa.UniqueConstraint("id", name="uq_searches_id"),
    )
    op.create_index("ix_searches_status_number", "searches", ["status", "number"])
    op.add_column("searches", sa.Column("space", sa.JSON(none_as_null=True), nullable=True))
    _insert("searches", [row | {"status": "done"} for row in searches])
    taken = max((row["number"] for row in searches), default=0)
    kept = ("id", "model_id", "settings", "error", "created_at")
    failed = [
        {name: job[name] for name in kept} | {"number": taken + place, "status": "failed"}
        for place, job in enumerate((job for job in jobs if job["asked_by"] == _LEFT_BEHIND), start=1)
    ]
    _insert("searches", failed)


def refuse_loss() -> None:
    """Raises CommandError if there are jobs that somebody waits for: revision 0006 has no place for them."""
    jobs = sa.table("jobs", sa.column("status", sa.String()))
    waiting = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.status.in_(("queued", "running")))
    if number := op.get_bind().execute(waiting).scalar():
        raise CommandError(f"revision 0006 cannot hold {number} jobs that wait or run. Finish or cancel them first")


def _row_number() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _moment() -> sa.DateTime:
    return sa.DateTime(timezone=True)


def _columns_of_both(*, result_nullable: bool) -> list[sa.Column[Any]]:
    return [
        sa.Column("number", _row_number(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("result", sa.JSON(none_as_null=True), nullable=result_nullable),
        sa.Column("created_at", _moment(), nullable=False),
    ]


def _create_jobs() -> None:
    known = "'queued', 'running', 'done', 'failed', 'cancelled', 'parked'"
    op.create_table(
        "jobs",
        *_columns_of_both(result_nullable=True),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("is_cancelling", sa.Boolean(), nullable=False),
        sa.Column("asked_by", sa.String(), nullable=False),
        sa.Column("idempotency_key", sa.String(), nullable=True),
        sa.Column("worker", sa.String(), nullable=True),
        sa.Column("heartbeat_at", _moment(), nullable=True),
        sa.Column("started_at", _moment(), nullable=True),
        sa.Column("finished_at", _moment(), nullable=True),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("progress", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("num_events", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(f"status IN ({known})", name=op.f("ck_jobs_status_known")),
        sa.PrimaryKeyConstraint("number", name="pk_jobs"),
        sa.UniqueConstraint("id", name="uq_jobs_id"),
        sa.UniqueConstraint("asked_by", "idempotency_key", name="uq_jobs_idempotency"),
    )
    op.create_index("ix_jobs_status_number", "jobs", ["status", "number"])
    op.create_table(
        "job_events",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("document", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("created_at", _moment(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_events_job_id_jobs"),
        sa.PrimaryKeyConstraint("job_id", "number", name="pk_job_events"),
    )


def _create_datasets_and_keys() -> None:
    op.create_table(
        "datasets",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("num_conversations", sa.BigInteger(), nullable=False),
        sa.Column("num_answers", sa.BigInteger(), nullable=False),
        sa.Column("num_pictures", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("added_by", sa.String(), nullable=False),
        sa.Column("created_at", _moment(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_datasets"),
    )
    op.create_table(
        "keys",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("scope", sa.String(), nullable=False),
        sa.Column("salt", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("created_at", _moment(), nullable=False),
        sa.Column("expires_at", _moment(), nullable=True),
        sa.Column("last_used_at", _moment(), nullable=True),
        sa.Column("revoked_at", _moment(), nullable=True),
        sa.Column("limit", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_keys"),
    )


def _reflected(table: str) -> sa.Table:
    """The table as it is now, with JSON columns that write None as NULL."""
    found = sa.Table(table, sa.MetaData(), autoload_with=op.get_bind())
    for column in found.columns:
        if isinstance(column.type, sa.JSON):
            column.type = sa.JSON(none_as_null=True)
    return found


def _rows(table: str) -> list[dict[str, Any]]:
    found = _reflected(table)
    return [dict(row) for row in op.get_bind().execute(sa.select(found).order_by(found.c.number)).mappings()]


def _insert(table: str, rows: list[dict[str, Any]]) -> None:
    connection, target = op.get_bind(), _reflected(table)
    for row in rows:
        connection.execute(target.insert().values(row))
    if rows and connection.dialect.name == "postgresql" and table != "job_events":
        # Numbers that were given leave the sequence behind.
        last = f"SELECT setval(pg_get_serial_sequence('{table}', 'number'), (SELECT max(number) FROM {table}))"  # noqa: S608
        connection.execute(sa.text(last))


def _job_of(search: dict[str, Any]) -> dict[str, Any]:
    error = search["error"] if search["status"] == "failed" and search["error"] else NAMES_A_FILE
    kept = {name: search[name] for name in ("number", "id", "model_id", "settings", "created_at")}
    return kept | {
        "kind": "search",
        "status": "failed",
        "is_cancelling": False,
        "asked_by": _LEFT_BEHIND,
        "attempts": 0,
        "error": error,
        "num_events": 1,
    }


def _event_of(search: dict[str, Any]) -> dict[str, Any]:
    document = {"status": "failed", "error": _job_of(search)["error"]}
    return {
        "job_id": search["id"],
        "number": 1,
        "kind": "status",
        "document": document,
        "created_at": search["created_at"],
    }
