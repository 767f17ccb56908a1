"""`lop db`: the database's schema."""

import typer

from lop.commands.options import DEFAULT_DATABASE, Database
from lop.console.console import print_line

app = typer.Typer(help="Create or upgrade the database.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Create or upgrade the database."""


@app.command("upgrade")
def upgrade_command(database: Database = DEFAULT_DATABASE) -> None:
    """Bring the schema to the revision that this version reads and writes; a new database is created."""
    from storage.database import upgrade

    upgrade(database)
    print_line("database is at the newest revision")
