"""Runs the service: checks first, then uvicorn until SIGTERM or SIGINT, then running requests to their end."""

import gc
import logging
import signal
import socket
import threading
from types import FrameType

import uvicorn
from threadpoolctl import threadpool_limits

from pruning.errors import InputError
from service.app import create_app
from service.logs import configure_logging
from service.resources import Resources
from service.settings import Settings
from service.tracing import start_tracing
from service.waiting import wait_for_database

_logger = logging.getLogger("service")

LISTEN_BACKLOG = 2048
"""Connections that may wait to be accepted: uvicorn's own default."""


def serve(settings: Settings) -> None:
    """Serve until a signal ends it; returns after a graceful shutdown.

    Raises:
        SchemaRevisionError: the database is older or newer than this code; names the command that upgrades it.
        StorageUnavailableError: the SQLite file cannot be used. A PostgreSQL that does not answer is waited for.
        InputError: the address cannot be listened on, or others can reach it and there is no key; the data store is
            no address.
        MissingExtraError: traces are asked for, and OpenTelemetry is not installed; or a data store that is no folder.
    """
    configure_logging(settings.log_level, settings.log_format)
    tracing = start_tracing(settings, "lop-server")
    app = create_app(settings, tracing=tracing)
    resources: Resources = app.state.resources
    # What cannot be used is told now, in one line, not to the first client.
    _ = resources.store
    has_keys = wait_for_database(settings.database_url, lambda: _look_for_keys(resources))
    if has_keys is None:
        tracing.close()
        return
    if not has_keys:
        if not settings.is_loopback:
            raise InputError(
                "a server that other machines can reach needs a key",
                values=f"host {settings.host}, no key",
                remedy="Make one with `lop key create --scope run NAME`, or use --host 127.0.0.1",
            )
        _logger.warning("there is no key yet: whoever is on this machine may do everything (`lop key create`)")
    # What is loaded by now stays: no garbage collection in the middle of a request need look through it.
    gc.collect()
    gc.freeze()
    # Requests run side by side, and their matrices are small: threads inside one would wait for each other.
    with threadpool_limits(1), _listen(settings.host, settings.port) as listener:
        _logger.info("listening on http://%s:%d", _in_url(settings.host), listener.getsockname()[1])
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,  # service.access_log writes its own
            server_header=False,
            timeout_graceful_shutdown=settings.shutdown_seconds,
        )
        server = uvicorn.Server(config)
        resources.is_stopping = lambda: server.should_exit
        # uvicorn raises the signal that ended it once more afterwards: a stop that was asked for is no failure.
        previous = {number: signal.signal(number, _ignore) for number in _stop_signals()}
        try:
            server.run(sockets=[listener])
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            tracing.close()
    _logger.info("stopped")


def _look_for_keys(resources: Resources) -> bool:
    resources.repository.check()
    return resources.repository.has_keys()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family, backlog=LISTEN_BACKLOG)
        # Connections inherit it: asyncio sets it only where a socket names its protocol, and this one does not. Without
        # it the second packet of an answer waits 40 ms for a delayed acknowledgement (RFC 896, RFC 1122 4.2.3.2).
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        raise InputError(
            "the server must be able to listen on its address",
            values=f"{host}:{port}: {error.strerror or error}",
            remedy="Choose another LOP_PORT or LOP_HOST, or stop what listens there",
        ) from error


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _stop_signals() -> tuple[signal.Signals, ...]:
    if threading.current_thread() is not threading.main_thread():
        return ()
    return (signal.SIGTERM, signal.SIGINT)


def _ignore(number: int, frame: FrameType | None) -> None:
    """The server has already stopped for this signal."""
