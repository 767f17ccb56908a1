"""`lop queue`: the searches of a database."""

from lop.commands.options import DEFAULT_DATABASE, Database, Json, open_database
from lop.console.console import print_json, print_table


def queue(database: Database = DEFAULT_DATABASE, json: Json = False) -> None:
    """List searches: queued and running ones of `lop search --queue`, and all that are finished."""
    with open_database(database) as repository:
        searches = repository.list_searches()
    rows = [
        {
            "id": search.id,
            "model": search.model_id,
            "method": (search.settings.get("search") or {}).get("method", "mcts"),
            "status": str(search.status),
            "worker": search.worker,
            "created": search.created_at.isoformat(timespec="seconds"),
            "predictor": (search.result or {}).get("predictor"),
            "error": search.error,
        }
        for search in searches
    ]
    if json:
        print_json(rows)
    else:
        print_table("searches", list(rows[0]) if rows else ["id"], [[x or "-" for x in row.values()] for row in rows])
