"""`lop queue`: the searches of a database."""

from lop.commands.options import DEFAULT_DATABASE, Database, Json, open_database
from lop.console.console import print_json, print_table
from pruning.errors import InputError
from pruning.planning.space import Space
from storage.records import SearchRecord


def queue(database: Database = DEFAULT_DATABASE, json: Json = False) -> None:
    """List searches: queued and running ones of `lop search --queue`, and all that are finished."""
    with open_database(database) as repository:
        searches = repository.list_searches()
    rows = [
        {
            "id": search.id,
            "model": search.model_id,
            "method": (search.settings.get("search") or {}).get("method", "mcts"),
            "space": (search.settings.get("search") or {}).get("axes", "ffn"),
            "status": str(search.status),
            "worker": search.worker,
            "created": search.created_at.isoformat(timespec="seconds"),
            "predictor": (search.result or {}).get("predictor"),
            "error": search.error or _unknown_space(search),
        }
        for search in searches
    ]
    if json:
        print_json(rows)
    else:
        print_table("searches", list(rows[0]) if rows else ["id"], [[x or "-" for x in row.values()] for row in rows])


def _unknown_space(search: SearchRecord) -> str | None:
    """What is wrong with a space that this version cannot read."""
    try:
        if search.space is not None:
            Space.from_document(search.space)
    except InputError as error:
        return str(error)
    return None
