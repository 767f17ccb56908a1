"""What is traced: nothing, unless the operator says so and OpenTelemetry is installed."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from fastapi import FastAPI

from pruning.errors import InputError
from pruning.missing_packages import missing_extra
from service.settings import Settings
from storage.records import JobRecord

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""OpenTelemetry's own variables for where traces go; one of them is needed."""

EndOfJob = Callable[[str | None], None]
"""Says how a job ended: None, or why it failed."""


class Tracing:
    """Traces nothing. `service.otel.OtelTracing` does."""

    def watch(self, app: FastAPI) -> None:
        """Trace the requests to `app`; before its first one."""

    def note_job(self, job_id: str) -> None:
        """The request at hand asked for this job."""

    @contextmanager
    def job(self, job: JobRecord) -> Iterator[EndOfJob]:  # noqa: ARG002 (that of what traces)
        """The block runs `job`."""
        yield lambda _failure: None

    def close(self) -> None:
        """Send what was not sent yet."""


NOTHING_TRACED = Tracing()


def start_tracing(settings: Settings, service_name: str) -> Tracing:
    """What traces this process, as `settings.traces` and the OTEL_... variables say.

    `service_name` is what OTEL_SERVICE_NAME stands for where it is not set.

    Raises:
        MissingExtraError: OpenTelemetry is not installed.
        InputError: nothing says where traces go.
    """
    if not settings.traces:
        return NOTHING_TRACED
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        raise missing_extra("otel", "traces need OpenTelemetry's SDK, which is not installed", values="LOP_TRACES=true")
    if not any(os.environ.get(name) for name in ENDPOINTS):
        raise InputError(
            "traces need a place to go",
            values=f"LOP_TRACES=true, no {ENDPOINTS[0]}",
            remedy=f"Set {ENDPOINTS[0]} to a collector's address, such as http://localhost:4318, or unset LOP_TRACES",
        )
    from service.otel import OtelTracing, exporting_provider

    return OtelTracing(exporting_provider(service_name))
