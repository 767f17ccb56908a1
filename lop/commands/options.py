"""Options that several commands share."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from storage.contract import Repository

DEFAULT_DATABASE = "sqlite:///lop.db"

Database = Annotated[
    str,
    typer.Option(
        envvar="LOP_DATABASE_URL", help="sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME.", show_envvar=True
    ),
]
OptionalDatabase = Annotated[
    str | None, typer.Option("--database", help="Database to use, as LOP_DATABASE_URL; default sqlite:///lop.db.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of every random choice: equal seeds give equal results.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
ModelId = Annotated[str, typer.Option("--model", "-m", help="Id of a registered model (`lop model list`).")]


def open_database(url: str, *, create: bool = False) -> "Repository":
    """The repository at `url`; a new SQLite file is made and migrated if `create`."""
    from storage.sql_repository import open_repository

    return open_repository(url, create=create)
