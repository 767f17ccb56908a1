"""`lop key`: who may use the server."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from lop.commands.options import DEFAULT_DATABASE, Database, Json, open_database
from lop.commands.time_spans import time_span
from lop.console.console import print_json, print_line, print_table, stderr
from storage.records import KeyRecord, KeyScope

app = typer.Typer(help="Make keys to the server, list and revoke them.", no_args_is_help=True)


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Who it is for, or what. Keys of one name may change each other's jobs.")],
    scope: Annotated[
        KeyScope,
        typer.Option(
            help="What it may do, each with all before it: read what there is; plan; run jobs, hand in data and "
            "devices; admin: change everybody's jobs."
        ),
    ],
    expires: Annotated[
        str | None, typer.Option(help="Time to live, such as 12h, 30d or 52w. Default: for ever.")
    ] = None,
    limit: Annotated[
        str | None, typer.Option(help="Requests that it may make, such as 100/minute. Default: LOP_KEY_LIMIT.")
    ] = None,
    database: Database = DEFAULT_DATABASE,
    json: Json = False,
) -> None:
    """Make a key. It is shown once, and only a salted hash of it is stored.

    From the first key on, the server answers nobody without one, on this machine either.
    """
    from service.keys import new_key

    record, key = new_key(name, scope, lifetime=None if expires is None else time_span(expires), limit=limit)
    with open_database(database) as repository:
        repository.add_key(record)
    if json:
        print_json({**_row(record), "key": key})
        return
    stderr().print("this key is shown once; clients take it as LOP_KEY:", markup=False)
    print_line(key)


@app.command("list")
def list_keys(database: Database = DEFAULT_DATABASE, json: Json = False) -> None:
    """List keys, those that were revoked or have expired included; never the keys themselves."""
    with open_database(database) as repository:
        keys = repository.list_keys()
    if json:
        print_json([_row(record) for record in keys])
        return
    rows = [[key.id, key.name, key.scope.value, key.limit or "-", _date(key.last_used_at), _state(key)] for key in keys]
    print_table("keys", ["id", "name", "scope", "limit", "last used", "state"], rows)


@app.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="Of the key, from `lop key list`.")],
    database: Database = DEFAULT_DATABASE,
    json: Json = False,
) -> None:
    """Revoke a key: within two seconds it opens nothing. A server whose keys are all revoked answers nobody."""
    with open_database(database) as repository:
        row = _row(repository.revoke_key(key_id))
    if json:
        print_json(row)
    else:
        print_line(f"revoked key {row['id']} ({row['name']})")


def _row(record: KeyRecord) -> dict[str, str | None]:
    moments = {
        "created": record.created_at,
        "expires": record.expires_at,
        "last used": record.last_used_at,
        "revoked": record.revoked_at,
    }
    return {
        "id": record.id,
        "name": record.name,
        "scope": record.scope.value,
        "limit": record.limit,
        **{name: None if at is None else at.isoformat(timespec="seconds") for name, at in moments.items()},
    }


def _date(at: datetime | None) -> str:
    return "-" if at is None else at.date().isoformat()


def _state(record: KeyRecord) -> str:
    if record.revoked_at is not None:
        return "revoked"
    if record.expires_at is None:
        return "good"
    return "expired" if record.expires_at <= datetime.now(UTC) else f"until {_date(record.expires_at)}"
