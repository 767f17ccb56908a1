"""Metrics of what is cut, on one set of conversations: measured once, and kept in a file as soon as they are known."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture
from pruning.atomic_file import replace_file
from pruning.measuring.metrics import Evaluate, FoldMetrics, Metrics

CHECKED = 4
"""Configurations that are measured again, about so many: from the least KL upwards, evenly by rank."""


class KeptMetrics:
    """What a benchmark that was killed goes on from, and what searches on equal conversations share.

    The file is not trusted: of what it holds, a few configurations are measured again. If one of them gives another KL,
    the code or the model has changed since, and all of it is forgotten.

    Args:
        path: one JSON line a configuration: of FFN widths alone "widths" [L], of others the document of the
            architecture, "layers". The file's name says which conversations and which ranking.
        build: makes the evaluator, when the first configuration is asked for.
        anatomy: of the model.

    Attributes:
        remembered_seconds: what measuring took of all that was asked for again; a search that profits from another one
            counts them as its own.
    """

    def __init__(self, path: Path, build: Callable[[], Evaluate], anatomy: ModelAnatomy) -> None:
        self._path, self._build, self._anatomy = path, build, anatomy
        self.remembered_seconds = 0.0

    def __call__(self, architecture: Architecture) -> Metrics:
        """Metrics of the model cut to `architecture`."""
        if architecture in self._known:
            metrics, seconds = self._known[architecture]
            self.remembered_seconds += seconds
            return metrics
        started = time.perf_counter()
        metrics = self._measure(architecture)
        seconds = time.perf_counter() - started
        self._known[architecture] = metrics, seconds
        line = {**self._name(architecture), "seconds": seconds, "metrics": asdict(metrics)}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return metrics

    def _name(self, architecture: Architecture) -> dict[str, Any]:
        """What its line begins with."""
        widths = self._anatomy.ffn_widths_alone(architecture)
        return {"layers": architecture.document()} if widths is None else {"widths": list(widths)}

    def _named(self, item: dict[str, Any]) -> Architecture:
        """The inverse of `_name`."""
        if "layers" in item:
            return Architecture.from_document(item["layers"])
        return self._anatomy.architecture(item["widths"])

    def _measure(self, architecture: Architecture) -> Metrics:
        (metrics,) = self._evaluator([architecture])
        return metrics

    @cached_property
    def _evaluator(self) -> Evaluate:
        return self._build()

    @cached_property
    def _known(self) -> dict[Architecture, tuple[Metrics, float]]:
        if not self._path.is_file():
            return {}
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):  # killed while a line was being written
            replace_file(self._path, whole)
        items = [json.loads(line) for line in whole.splitlines()]
        if all(self._is_the_same(item) for item in sorted(items, key=_kl)[:: max(1, len(items) // CHECKED)]):
            return {self._named(item): (_metrics(item["metrics"]), item["seconds"]) for item in items}
        self._path.unlink()
        return {}

    def _is_the_same(self, item: dict[str, Any]) -> bool:
        try:
            kept = _metrics(item["metrics"])
        except (KeyError, TypeError):  # other fields than today's
            return False
        again = self._measure(self._named(item))
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
