"""Logging of the long-running processes: one line per event, on standard error."""

import logging.config

from service.settings import LogLevel


def configure_logging(level: LogLevel) -> None:
    """Send every logger of the process, uvicorn's included, to standard error in one format."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
            "root": {"level": level.value.upper(), "handlers": ["stderr"]},
            # Alembic tells about every check of the revision at INFO.
            "loggers": {"alembic": {"level": "WARNING"}},
        }
    )
