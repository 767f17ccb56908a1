"""What is stored says what it is of: samples their protocol, searches and predictors their space, models the origin of
their ranking; results of searches name option indices from 0 ("choice") where they named levels from 1
("configuration")

Samples of before keep their keys: a configuration key covers the protocol where there is one, and they had none.

Revision ID: 0005
Revises: 0004
"""

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

ADDED = (("models", "ranking_origin"), ("searches", "space"), ("predictors", "space"))


def upgrade() -> None:
    # Columns that are nullable or have a constant default are added in place on both databases: no row is copied.
    op.add_column("samples", sa.Column("protocol", sa.String(), nullable=False, server_default=""))
    for table, column in ADDED:
        op.add_column(table, sa.Column(column, sa.JSON(none_as_null=True), nullable=True))
    rename_choices("configuration", "choice", -1)


def downgrade() -> None:
    refuse_loss()
    rename_choices("choice", "configuration", 1)
    for table, column in (("samples", "protocol"), *ADDED):
        op.drop_column(table, column)  # in place, on both: a copied table would come back without its checks on SQLite


def refuse_loss() -> None:
    """Raises CommandError if the code of revision 0004 could not read what is stored, or would take it for another."""

    def count(is_lost: Callable[..., bool], table: str, **types: Any) -> int:
        columns = [sa.column(name, of_type) for name, of_type in types.items()]
        rows = op.get_bind().execute(sa.select(*columns).select_from(sa.table(table)))
        return sum(is_lost(*row) for row in rows)

    numbers = {
        "samples of other architectures or protocols": count(
            lambda configuration, protocol: protocol != "" or min(configuration.get("ffn_widths", [0])) < 1,
            "samples",
            configuration=sa.JSON,
            protocol=sa.String,
        ),
        "plans of schema 2": count(lambda plan: plan["schema_version"] == 2, "plans", document=sa.JSON),
        "predictors of format 3": count(lambda x: x.get("format_version") == 3, "predictors", config=sa.JSON),
        "searches of other spaces": count(is_other, "searches", space=sa.JSON, settings=sa.JSON),
    }
    if lost := ", ".join(f"{number} {what}" for what, number in numbers.items() if number):
        raise CommandError(
            f"revision 0004 cannot hold {lost}. Keep this version, or restore the backup from before 0005"
        )


def is_other(space: Any, settings: Any) -> bool:
    """Whether `space` is said, and is another one than revision 0004 works out from the settings."""
    if space is None:
        return False
    try:
        levels, round_to = (settings["search"].get(name, 8) for name in ("num_levels", "round_to"))
        dense = [site["dense"] for (site,) in space["decisions"]]
        rows = [[*(int(d * k / levels / round_to + 0.5) * round_to for k in range(1, levels)), d] for d in dense]
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return True
    sites = [
        {"layer": layer, "sublayer": "ffn", "dense": d, "units": row}
        for layer, (d, row) in enumerate(zip(dense, rows, strict=True))
    ]
    return bool(space != {"decisions": [[site] for site in sites]})


def rename_choices(old: str, new: str, step: int) -> None:
    """In all results: what is equal is stored once, so a search that is run again must find its own."""
    searches = sa.table("searches", sa.column("number"), sa.column("result", sa.JSON(none_as_null=True)))
    connection = op.get_bind()
    for number, result in connection.execute(sa.select(searches).where(searches.c.result.is_not(None))).all():
        try:
            search = result["search"]
            targets = [
                {new if k == old else k: [n + step for n in v] if k == old else v for k, v in target.items()}
                for target in search["targets"]
            ]
        except (AttributeError, KeyError, TypeError):  # no result of a search
            continue
        update = searches.update().where(searches.c.number == number)
        connection.execute(update.values(result=result | {"search": search | {"targets": targets}}))
