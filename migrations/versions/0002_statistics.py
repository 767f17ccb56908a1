"""Statistics of dense models; queued searches lose settings that there are no more

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# The search reads its settings strictly: a worker would refuse what an older version queued.
_DROPPED = ("refit_every", "trust_radius", "move_share")


def upgrade() -> None:
    op.create_table(
        "statistics",
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("calibration_id", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_statistics_model_id_models"),
        sa.ForeignKeyConstraint(
            ["calibration_id"], ["calibrations.id"], name="fk_statistics_calibration_id_calibrations"
        ),
        sa.ForeignKeyConstraint(["sha256"], ["artifacts.sha256"], name="fk_statistics_sha256_artifacts"),
        sa.PrimaryKeyConstraint("model_id", "kind", "calibration_id", name="pk_statistics"),
    )
    _drop_settings(op.get_bind())


def downgrade() -> None:
    # Settings that were dropped stay so: revision 0001 reads their defaults.
    op.drop_table("statistics")


def _drop_settings(connection: sa.Connection) -> None:
    searches = sa.table(
        "searches", sa.column("number"), sa.column("status", sa.String()), sa.column("settings", sa.JSON())
    )
    waiting = sa.select(searches.c.number, searches.c.settings).where(searches.c.status.in_(("queued", "running")))
    for number, document in connection.execute(waiting).all():
        search = document.get("search") if isinstance(document, dict) else None
        if not isinstance(search, dict) or search.keys().isdisjoint(_DROPPED):
            continue
        kept = {name: value for name, value in search.items() if name not in _DROPPED}
        update = searches.update().where(searches.c.number == number)
        connection.execute(update.values(settings=document | {"search": kept}))
