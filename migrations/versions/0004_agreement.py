"""Agreement with the dense model beside the other metrics; samples from before keep theirs, and have none of it

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A nullable column is added in place on both databases: no row is copied.
    op.add_column("samples", sa.Column("agreement", sa.Double(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("samples") as table:
        table.drop_column("agreement")
