"""Figures of this process and of the queue, for Prometheus."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service.dependencies import MetricsDep

router = APIRouter(include_in_schema=False)


@router.get("/metrics")
def read_metrics(metrics: MetricsDep) -> Response:
    """In the text format. Takes a key of scope `read`, like everything that tells something."""
    return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)
