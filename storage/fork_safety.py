"""Pooled connections belong to the process that opened them."""

import os
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.exc import DisconnectionError


def drop_connections_of_parent(engine: Engine) -> None:
    """A forked child opens connections of its own: two processes on one socket or one SQLite handle corrupt it.

    The recipe of https://docs.sqlalchemy.org/en/21/core/pooling.html#using-connection-pools-with-multiprocessing-or-os-fork
    """

    @event.listens_for(engine, "connect")
    def remember_process(_connection: Any, record: Any) -> None:
        record.info["pid"] = os.getpid()

    @event.listens_for(engine, "checkout")
    def check_process(_connection: Any, record: Any, proxy: Any) -> None:
        if record.info["pid"] != os.getpid():
            record.dbapi_connection = proxy.dbapi_connection = None  # forgotten, not closed: it is the parent's
            raise DisconnectionError(f"the connection belongs to process {record.info['pid']}")
