"""Traces by OpenTelemetry (extra `otel`): a span a request, with the request's id, and a span a job.

A job's span has the same `lop.job_id` as that of the request which asked for it; between the two lies the database, so
they are two traces.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from service.request_id import begin_request
from service.tracing import EndOfJob, Tracing
from storage.records import JobRecord

UNTRACED = ",".join(rf"^[a-z]+://[^/]*/{path}$" for path in ("healthz", "readyz", "metrics"))
"""Addresses that machines ask for all the time; of no model that is called so."""


def exporting_provider(service_name: str) -> TracerProvider:
    """Sends spans by OTLP over HTTP, from a thread; OTEL_... variables say where to, with what headers, how many."""
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: service_name}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class OtelTracing(Tracing):
    """Traces into `provider`. Nothing of OpenTelemetry's global state is changed."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("lop")

    def watch(self, app: FastAPI) -> None:
        FastAPIInstrumentor.instrument_app(
            app,
            tracer_provider=self._provider,
            server_request_hook=_begin,
            excluded_urls=UNTRACED,
            exclude_spans=["receive", "send"],
        )

    def note_job(self, job_id: str) -> None:
        trace.get_current_span().set_attribute("lop.job_id", job_id)

    @contextmanager
    def job(self, job: JobRecord) -> Iterator[EndOfJob]:
        attributes = {"lop.job_id": job.id, "lop.job_kind": job.kind, "lop.model": job.model_id}
        with self._tracer.start_as_current_span(
            f"job {job.kind}", kind=trace.SpanKind.CONSUMER, attributes=attributes
        ) as span:

            def end(failure: str | None) -> None:
                if failure is not None:
                    span.set_status(trace.Status(trace.StatusCode.ERROR, failure))

            yield end

    def close(self) -> None:
        self._provider.shutdown()


def _begin(span: Any, scope: dict[str, Any]) -> None:
    if span is not None and span.is_recording():
        span.set_attribute("lop.request_id", begin_request(scope))
