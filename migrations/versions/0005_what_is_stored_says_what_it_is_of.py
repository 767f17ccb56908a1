"""What is stored says what it is of: samples their protocol, searches and predictors their space, models the origin of
their ranking

Samples of before keep their keys: a configuration key covers the protocol where there is one, and they had none.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

ADDED = (("models", "ranking_origin"), ("searches", "space"), ("predictors", "space"))

samples = sa.table("samples", sa.column("protocol", sa.String), sa.column("configuration", sa.JSON))


def upgrade() -> None:
    # Columns that are nullable or have a constant default are added in place on both databases: no row is copied.
    op.add_column("samples", sa.Column("protocol", sa.String(), nullable=False, server_default=""))
    for table, column in ADDED:
        op.add_column(table, sa.Column(column, sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    connection = op.get_bind()
    # As text: what is compared is one key of a document, on both databases.
    only_widths = sa.cast(samples.c.configuration, sa.String).like('%"ffn_widths"%')
    lost = connection.execute(
        sa.select(sa.func.count()).select_from(samples).where(sa.or_(samples.c.protocol != "", sa.not_(only_widths)))
    ).scalar_one()
    if lost:
        raise CommandError(
            "revision 0004 holds samples of FFN widths that were only cut: "
            f"{lost} are of other architectures or protocols"
        )
    for table, column in (("samples", "protocol"), *ADDED):
        op.drop_column(table, column)  # in place, on both: a copied table would come back without its checks on SQLite
