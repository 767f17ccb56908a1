"""Options that several commands share."""

from typing import TYPE_CHECKING, Annotated

import typer

from lop.workflows.engines import Engine

if TYPE_CHECKING:
    from storage.sql_repository import SqlRepository

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
EngineName = Annotated[
    Engine,
    typer.Option(
        "--engine",
        help="Where evaluations run: in this process, or on the actors of a Ray cluster (needs the ray extra). "
        "The samples are the same, bit for bit on equal hardware.",
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="Ray cluster to join: auto, HOST:PORT or ray://HOST:PORT; it is left running. "
        "Default: this machine alone. Its nodes need the checkpoint and the data at the same paths.",
        show_default=False,
    ),
]
NumActors = Annotated[
    int | None,
    typer.Option(
        "--actors",
        min=1,
        help="Ray actors, each of which holds the model once. Default: one a GPU if the cluster has any, otherwise "
        "one a CPU core, as far as the nodes' memory goes.",
        show_default=False,
    ),
]
CacheGib = Annotated[
    float | None,
    typer.Option(
        "--cache-gib",
        min=0.0,
        help="What each evaluator keeps, at most: the dense model's probabilities, hidden states for configurations "
        "that begin alike. Default: a quarter of the model's size, or 0.5 if that is more.",
        show_default=False,
    ),
]
ModelId = Annotated[str, typer.Option("--model", "-m", help="Id of a registered model (`lop model list`).")]


def open_database(url: str, *, create: bool = False) -> "SqlRepository":
    """The repository at `url`, to be closed; a new SQLite file is made and migrated if `create`."""
    from storage.sql_repository import open_repository

    return open_repository(url, create=create)
