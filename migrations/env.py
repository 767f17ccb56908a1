"""Alembic's entry point. The program hands in a connection; a developer on the command line gives `-x url=...`."""

from alembic import context
from sqlalchemy import Connection

from storage.database import create_database_engine
from storage.tables import Base
from storage.url import parse_url


def migrate(connection: Connection) -> None:
    # render_as_batch: SQLite cannot alter most of a table in place, so Alembic copies it.
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    migrate(given)
else:
    engine = create_database_engine(parse_url(context.get_x_argument(as_dictionary=True)["url"]), foreign_keys=False)
    with engine.execution_options(write=True).begin() as connection:
        migrate(connection)
    engine.dispose()
