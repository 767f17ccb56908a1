"""Logging of the long-running processes: one line per event, on standard error."""

import json
import logging.config
from datetime import UTC, datetime

from service.request_id import current_request_id
from service.settings import LogFormat, LogLevel


class LineFormatter(logging.Formatter):
    """For people: time, level, who, what; and the request that it was about."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (the name is the base class's)
        line = super().formatMessage(record)
        request_id = current_request_id()
        return line if request_id is None else f"{line} request_id={request_id}"


class JsonFormatter(logging.Formatter):
    """For machines: a JSON document a line, in ASCII; `fields` of a record stand beside what every line has."""

    def format(self, record: logging.LogRecord) -> str:
        document = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": current_request_id(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return json.dumps({name: value for name, value in document.items() if value is not None}, default=str)


def configure_logging(level: LogLevel, form: LogFormat = LogFormat.TEXT) -> None:
    """Send every logger of the process, uvicorn's included, to standard error in one format."""
    # No line says them, and to find them out for every request takes a third of the time of logging it.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    formatter = JsonFormatter if form is LogFormat.JSON else LineFormatter
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"()": formatter}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
            "root": {"level": level.value.upper(), "handlers": ["stderr"]},
            # Alembic tells about every check of the revision at INFO.
            "loggers": {"alembic": {"level": "WARNING"}},
        }
    )
