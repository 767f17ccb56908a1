"""What an operator can set, from `LOP_...` environment variables or the command line; unsafe values are refused."""

import ipaddress
import os
import re
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from pruning.errors import InputError
from service.names import is_loopback_name
from service.page.paths import SEGMENTS
from storage.url import parse_url

_HOST_NAME = r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?"
_PREFIX = r"(/[A-Za-z0-9._~-]+)+"
_OWN_PATHS = ("v1", "docs", "openapi.json", "healthz", "readyz", "metrics", *SEGMENTS)


class LogLevel(StrEnum):
    """How much the server says on standard error."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """Lines for people, or a JSON document a line."""

    TEXT = "text"
    JSON = "json"


class Settings(BaseSettings):
    """Settings of the server and the worker; `load_settings` builds them with one-line errors.

    Attributes:
        database_url: `sqlite:///file` or `postgresql://user:password@host/name`; not in `repr`, for its password.
        host: address to listen on; other machines reach any but a loopback address: such a server needs a key (`lop key
            create`) to start.
        port: to listen on; 0: any free one, which the log tells.
        allowed_hosts: names, separated by commas, that the `Host` of a request may have beside `localhost`, 127.0.0.1
            and [::1]: the one that a proxy hands on. `/healthz`, `/readyz` and `/metrics` then answer under any, since
            probes ask by address. None: without any key, no other one; with keys, any.
        key_limit: requests that a key may make, such as "100/minute", in each server process; a key may have its own.
        max_request_bytes: a longer request body is answered 413 before it is read further; a device's profile may have
            2 MiB in any case.
        cached_predictors: predictors kept in memory, least recently used ones leave first.
        root_path: the prefix of the service's paths as clients see them, which a proxy takes away: "/lop".
        shutdown_seconds: how long running requests may take to end after SIGTERM.
        model_roots: folders, separated as in PATH, under which jobs may name a checkpoint's folder. None: jobs register
            nothing.
        data_store: folder, or address of `fsspec`, with the content of data sets; server and workers share it.
        data_cache: folder of the worker in which unpacked data sets are kept; none: a temporary one for each job. For
            Ray it must be at the same path on every machine.
        output_root: folder of the worker into which jobs write checkpoints.
        log_level: of what is logged, this and what is more serious; in any case.
        log_format: lines of the log as text, or each as a JSON document.
        traces: send a trace of every request and job to the address in OTEL_EXPORTER_OTLP_ENDPOINT; takes the extra
            `otel`.
        max_event_streams: streams of job events that one process keeps open; one more is answered 503. Every stream
            asks the database some four times a second.
        max_dataset_bytes: a longer archive is answered 413.
    """

    model_config = SettingsConfigDict(env_prefix="LOP_", extra="forbid", frozen=True, validate_default=True)

    database_url: str = Field(default="sqlite:///lop.db", repr=False)
    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8000, ge=0, le=65535)
    allowed_hosts: str = ""
    key_limit: str = "6000/minute"
    max_request_bytes: int = Field(default=64 * 1024, ge=1024, le=16 * 1024 * 1024)
    log_level: LogLevel = LogLevel.INFO
    log_format: LogFormat = LogFormat.TEXT
    traces: bool = False
    max_event_streams: int = Field(default=200, ge=1, le=100_000)
    cached_predictors: int = Field(default=8, ge=1, le=1024)
    root_path: str = ""
    shutdown_seconds: int = Field(default=20, ge=1, le=3600)
    model_roots: str = ""
    data_store: str = Field(default="lop-data", min_length=1)
    data_cache: str = ""
    output_root: str = Field(default="lop-output", min_length=1)
    max_dataset_bytes: int = Field(default=2**30, ge=1024, le=2**36)

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, url: str) -> str:
        parse_url(url)
        return url

    @field_validator("root_path")
    @classmethod
    def _prefix(cls, root_path: str) -> str:
        prefix = root_path.rstrip("/")
        if prefix and not re.fullmatch(_PREFIX, prefix):
            raise ValueError(
                f"a prefix is a path such as /lop, of letters, digits and . _ ~ - (got {root_path[:80]!r})"
            )
        first = prefix.partition("/")[2].partition("/")[0]
        if any(segment in (".", "..") for segment in prefix.split("/")) or first in _OWN_PATHS:
            raise ValueError(f"a prefix has no dot segments, and begins with none of {', '.join(_OWN_PATHS)}")
        return prefix

    @field_validator("allowed_hosts")
    @classmethod
    def _host_names(cls, names: str) -> str:
        for name in _split(names):
            if not re.fullmatch(_HOST_NAME, name) and not _is_address(name):
                raise ValueError(
                    f"a host is a name such as lop.example.com, without scheme and port (got {name[:80]!r})"
                )
        return names

    @field_validator("log_level", mode="before")
    @classmethod
    def _any_case(cls, level: Any) -> Any:
        return level.lower() if isinstance(level, str) else level

    @field_validator("key_limit")
    @classmethod
    def _a_limit(cls, limit: str) -> str:
        from service.keys import parse_limit

        parse_limit(limit)
        return limit

    @property
    def model_folders(self) -> tuple[Path, ...]:
        """`model_roots`, one by one."""
        return tuple(Path(root) for root in self.model_roots.split(os.pathsep) if root)

    @property
    def allowed_host_names(self) -> frozenset[str]:
        """`allowed_hosts`, one by one, in lower case."""
        return frozenset(_split(self.allowed_hosts))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach `host`."""
        return is_loopback_name(self.host)


def _split(names: str) -> list[str]:
    return [name.strip().lower() for name in names.split(",") if name.strip()]


def _is_address(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment; `overrides` that are not None win.

    Raises:
        InputError: names the first setting with an unsafe or malformed value. Never shows the database URL.
    """
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = "_".join(str(part) for part in first["loc"])
        where = f"LOP_{name.upper()}: " if name else ""
        raise InputError(
            f"not a safe setting: {where}{first['msg'].removeprefix('Value error, ')}",
            remedy="Correct the environment variable or the option of the same name",
        ) from None
