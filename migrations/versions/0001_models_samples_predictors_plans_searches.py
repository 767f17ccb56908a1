"""Artifacts, models, calibration sets, samples, predictors, plans and searches

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    row_number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "artifacts",
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("media_type", sa.String(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name="pk_artifacts"),
    )
    op.create_table(
        "models",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("anatomy", sa.JSON(), nullable=False),
        sa.Column("weights_sha256", sa.String(), nullable=False),
        sa.Column("ranking_sha256", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.ForeignKeyConstraint(["ranking_sha256"], ["artifacts.sha256"], name="fk_models_ranking_sha256_artifacts"),
        sa.PrimaryKeyConstraint("id", name="pk_models"),
    )
    op.create_table(
        "calibrations",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("num_conversations", sa.BigInteger(), nullable=False),
        sa.Column("num_answers", sa.BigInteger(), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_calibrations"),
    )
    op.create_table(
        "samples",
        sa.Column("number", row_number, nullable=False),
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("ranking_sha256", sa.String(), nullable=False),
        sa.Column("calibration_id", sa.String(), nullable=False),
        sa.Column("configuration_key", sa.String(), nullable=False),
        sa.Column("configuration", sa.JSON(), nullable=False),
        sa.Column("kl", sa.Double(), nullable=False),
        sa.Column("nll", sa.Double(), nullable=False),
        sa.Column("accuracy", sa.Double(), nullable=False),
        sa.Column("num_tokens", sa.BigInteger(), nullable=False),
        sa.Column("num_answers", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_samples_model_id_models"),
        sa.ForeignKeyConstraint(["ranking_sha256"], ["artifacts.sha256"], name="fk_samples_ranking_sha256_artifacts"),
        sa.ForeignKeyConstraint(["calibration_id"], ["calibrations.id"], name="fk_samples_calibration_id_calibrations"),
        sa.PrimaryKeyConstraint("number", name="pk_samples"),
        sa.UniqueConstraint(
            "model_id",
            "ranking_sha256",
            "calibration_id",
            "configuration_key",
            name="uq_samples_configuration",
        ),
    )
    op.create_table(
        "predictors",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("weights_sha256", sa.String(), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_predictors_model_id_models"),
        sa.ForeignKeyConstraint(
            ["weights_sha256"], ["artifacts.sha256"], name="fk_predictors_weights_sha256_artifacts"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_predictors"),
    )
    op.create_index("ix_predictors_model_id_created_at", "predictors", ["model_id", "created_at"])
    op.create_table(
        "plans",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_plans_model_id_models"),
        sa.PrimaryKeyConstraint("id", name="pk_plans"),
    )
    op.create_table(
        "plan_requests",
        sa.Column("number", row_number, nullable=False),
        sa.Column("request_key", sa.String(), nullable=False),
        sa.Column("plan_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["plan_id"], ["plans.id"], name="fk_plan_requests_plan_id_plans"),
        sa.PrimaryKeyConstraint("number", name="pk_plan_requests"),
        sa.UniqueConstraint("request_key", name="uq_plan_requests_request_key"),
    )
    op.create_index("ix_plan_requests_plan_id", "plan_requests", ["plan_id"])
    op.create_table(
        "searches",
        sa.Column("number", row_number, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("worker", sa.String(), nullable=True),
        sa.Column("heartbeat_at", moment, nullable=True),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("created_at", moment, nullable=False),
        sa.CheckConstraint("status IN ('queued', 'running', 'done', 'failed')", name=op.f("ck_searches_status_known")),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_searches_model_id_models"),
        sa.PrimaryKeyConstraint("number", name="pk_searches"),
        sa.UniqueConstraint("id", name="uq_searches_id"),
    )
    op.create_index("ix_searches_status_number", "searches", ["status", "number"])


def downgrade() -> None:
    for table in ("searches", "plan_requests", "plans", "predictors", "samples", "calibrations", "models", "artifacts"):
        op.drop_table(table)
