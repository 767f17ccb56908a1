"""`lop queue`: the searches that were left to workers."""

from lop.commands.options import DEFAULT_DATABASE, Database, Json, open_database
from lop.console import print_json, print_table


def queue(database: Database = DEFAULT_DATABASE, json: Json = False) -> None:
    """List queued, running and finished searches of `lop search --queue`."""
    rows = [
        {
            "id": search.id,
            "model": search.model_id,
            "status": str(search.status),
            "worker": search.worker,
            "created": search.created_at.isoformat(timespec="seconds"),
            "predictor": (search.result or {}).get("predictor"),
            "error": search.error,
        }
        for search in open_database(database).list_searches()
    ]
    if json:
        print_json(rows)
    else:
        print_table("searches", list(rows[0]) if rows else ["id"], [[x or "-" for x in row.values()] for row in rows])
