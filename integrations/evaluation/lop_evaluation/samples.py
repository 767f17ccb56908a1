"""What a harness logs of each question, as scores by metric."""

from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

_NO_METRICS = {"doc_id", "target", "version", "input", "token_counts", "schema_version"}


def scores_by_metric(samples: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """metric -> question -> score, of the metrics that score each question by itself."""
    found: dict[str, dict[str, float]] = {}
    for sample in samples:
        names = sample.get("metrics") or [name for name in sample if name not in _NO_METRICS]
        for name in names:
            value = sample.get(name)
            if isinstance(value, Real):
                found.setdefault(name, {})[str(sample["doc_id"])] = float(value)
    return found
