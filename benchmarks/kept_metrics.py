"""Metrics of FFN widths on one set of conversations: measured once, and kept in a file as soon as they are known."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from pruning.measuring.evaluation import ConfigurationEvaluator
from pruning.measuring.metrics import FoldMetrics, Metrics, Widths

CHECKED = 4
"""Configurations that are measured again, about so many: from the least KL upwards, evenly by rank."""


class KeptMetrics:
    """What a benchmark that was killed goes on from, and what searches on equal conversations share.

    The file is not trusted: of what it holds, a few configurations are measured again. If one of them gives another KL,
    the code or the model has changed since, and all of it is forgotten.

    Args:
        path: one JSON line a configuration. Its name says which conversations and which ranking of channels.
        build: makes the evaluator, when the first configuration is asked for.

    Attributes:
        remembered_seconds: what measuring took of all that was asked for again; a search that profits from another one
            counts them as its own.
    """

    def __init__(self, path: Path, build: Callable[[], ConfigurationEvaluator]) -> None:
        self._path, self._build = path, build
        self.remembered_seconds = 0.0

    def __call__(self, widths: Widths) -> Metrics:
        """Metrics of `widths` [L]."""
        if widths in self._known:
            metrics, seconds = self._known[widths]
            self.remembered_seconds += seconds
            return metrics
        started = time.perf_counter()
        metrics = self._evaluator.evaluate(widths)
        seconds = time.perf_counter() - started
        self._known[widths] = metrics, seconds
        line = {"widths": list(widths), "seconds": seconds, "metrics": asdict(metrics)}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return metrics

    @cached_property
    def _evaluator(self) -> ConfigurationEvaluator:
        return self._build()

    @cached_property
    def _known(self) -> dict[Widths, tuple[Metrics, float]]:
        if not self._path.is_file():
            return {}
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):  # killed while a line was being written
            self._path.write_bytes(whole)
        items = [json.loads(line) for line in whole.splitlines()]
        if all(self._is_the_same(item) for item in sorted(items, key=_kl)[:: max(1, len(items) // CHECKED)]):
            return {tuple(item["widths"]): (_metrics(item["metrics"]), item["seconds"]) for item in items}
        self._path.unlink()
        return {}

    def _is_the_same(self, item: dict[str, Any]) -> bool:
        try:
            kept = _metrics(item["metrics"])
        except (KeyError, TypeError):  # other fields than today's
            return False
        again = self._evaluator.evaluate(item["widths"])
        pairs = ((again.kl, kept.kl), (again.score, kept.score))
        # Sums in another order are no other numbers.
        same_fields = again.to_dict().keys() == kept.to_dict().keys()
        return same_fields and all(math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-12) for a, b in pairs)


def _metrics(document: dict[str, Any]) -> Metrics:
    folds = document["folds"]
    return Metrics(**{**document, "folds": None if folds is None else tuple(FoldMetrics(*fold) for fold in folds)})


def _kl(item: dict[str, Any]) -> float:
    kl: float = item["metrics"]["kl"]
    return kl
