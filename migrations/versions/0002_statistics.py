"""Statistics of dense models

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


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


def downgrade() -> None:
    op.drop_table("statistics")
