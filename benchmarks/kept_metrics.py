"""Metrics of FFN widths on one set of conversations: measured once, and kept in a file as soon as they are known."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

from pruning.measuring.evaluation import ConfigurationEvaluator
from pruning.measuring.metrics import Metrics, Widths


class KeptMetrics:
    """What a benchmark that was killed goes on from, and what searches on equal conversations share.

    The file is not trusted: of what it holds, one configuration is measured again. If that gives another KL, the code
    or the model has changed since, and all of it is forgotten.

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
        if items:
            checked = max(items, key=lambda item: float(item["metrics"]["kl"]))
            again = asdict(self._evaluator.evaluate(checked["widths"]))
            if again.keys() == checked["metrics"].keys() and math.isclose(again["kl"], checked["metrics"]["kl"]):
                return {tuple(item["widths"]): (Metrics(**item["metrics"]), item["seconds"]) for item in items}
        self._path.unlink()
        return {}
