"""Options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from lop.console.console import warn
from pruning.errors import InputError
from pruning.planning.axis_spaces import SpaceName

if TYPE_CHECKING:
    from pruning.data.conversations import Conversation
    from storage.sql_repository import SqlRepository

Choice = TypeVar("Choice", bound=StrEnum)

DEFAULT_DATABASE = "sqlite:///lop.db"
DEFAULT_STORE = "lop-data"
DEFAULT_TARGETS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
DEFAULT_DECODER_TARGETS = (0.15, 0.3, 0.45, 0.6)


def default_targets(space: SpaceName) -> tuple[float, ...]:
    """Sparsities, of what is usual in that space."""
    return DEFAULT_TARGETS if space is SpaceName.FFN else DEFAULT_DECODER_TARGETS


Database = Annotated[
    str,
    typer.Option(
        envvar="LOP_DATABASE_URL", help="sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME.", show_envvar=True
    ),
]
OptionalDatabase = Annotated[
    str | None, typer.Option("--database", help="Database to use, as LOP_DATABASE_URL; default sqlite:///lop.db.")
]
Store = Annotated[
    str,
    typer.Option(
        envvar="LOP_DATA_STORE",
        help="Folder with the content of data sets, which servers and workers share.",
        show_envvar=True,
    ),
]
Url = Annotated[str | None, typer.Option(envvar="LOP_URL", help="Server to ask.", show_envvar=True)]
Seed = Annotated[int, typer.Option(min=0, help="Of every random choice: equal seeds give equal results.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
ModelId = Annotated[str, typer.Option("--model", "-m", help="Id of a registered model (`lop model list`).")]


def open_database(url: str, *, create: bool = False) -> "SqlRepository":
    """The repository at `url`, to be closed; a new SQLite file is made and migrated if `create`."""
    from storage.sql_repository import open_repository

    return open_repository(url, create=create)


def conversations_of(path: Path, limit: int | None = None) -> "list[Conversation]":
    """The first `limit` conversations of the file at `path`; warned of if they are few."""
    from lop.workflows.registration import read_conversations

    conversations, warning = read_conversations(path, limit)
    if warning:
        warn(warning)
    return conversations


def one_of(kind: type[Choice], name: str, option: str) -> Choice:
    """The member of `kind` that is called `name`; raises InputError that lists them."""
    try:
        return kind(name)
    except ValueError:
        raise InputError(
            f"{option} must be one of those that there are", values=repr(name), remedy=f"Known are {', '.join(kind)}"
        ) from None
