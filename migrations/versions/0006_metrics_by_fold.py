"""The metrics of each fold of the conversations beside those of all; samples from before have no folds

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A nullable column is added in place on both databases: no row is copied.
    op.add_column("samples", sa.Column("folds", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    # Nothing that revision 0005 knows of is lost: folds say how far a KL is to be trusted, and the KL is kept.
    op.drop_column("samples", "folds")
