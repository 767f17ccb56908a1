"""Scoring configurations through the database: what was measured once is never measured again."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from pruning.errors import InputError
from pruning.metrics import Metrics
from storage.contract import Repository
from storage.records import Sample

Widths = tuple[int, ...]
"""FFN widths [L]."""


class Evaluate(Protocol):
    """Measures a model pruned to each of `widths` [n][L]; returns n Metrics in the same order."""

    def __call__(self, widths: Sequence[Widths], /) -> list[Metrics]: ...


class MemoisedEvaluator:
    """An Evaluate that looks in the repository first and stores every new result at once.

    Args:
        repository: where samples are.
        model_id, ranking_sha256, calibration_id: what the samples are of.
        evaluate: measures what is missing.
        source: stored with each new sample.
        batch_size: configurations handed to `evaluate` per call; a killed process loses at most these.
        clock: seconds, monotonic.

    What a call returns depends only on what is stored in the end: if another process stored a configuration first, its
    metrics are the ones returned. So a search that is run again reads the same numbers.
    """

    def __init__(
        self,
        repository: Repository,
        model_id: str,
        ranking_sha256: str,
        calibration_id: str,
        evaluate: Evaluate,
        source: str,
        *,
        batch_size: int = 1,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._repository = repository
        self._key = (model_id, ranking_sha256, calibration_id)
        self._evaluate = evaluate
        self._source = source
        self._batch_size = batch_size
        self._clock = clock

    def __call__(self, widths: Sequence[Widths], /) -> list[Metrics]:
        """Metrics of `widths` [n][L], in order. Raises InputError if a measured KL, NLL or accuracy is not finite."""
        metrics: list[Metrics] = []
        for start in range(0, len(widths), self._batch_size):
            metrics += self._measure_batch(widths[start : start + self._batch_size])
        return metrics

    def _measure_batch(self, widths: Sequence[Widths]) -> list[Metrics]:
        known = self._repository.find_samples(*self._key, widths)
        missing = [w for w in dict.fromkeys(widths) if w not in known]
        if missing:
            known |= self._measure_missing(missing)
        return [known[w] for w in widths]

    def _measure_missing(self, missing: list[Widths]) -> dict[Widths, Metrics]:
        started = self._clock()
        measured = dict(zip(missing, self._evaluate(missing), strict=True))
        seconds = (self._clock() - started) / len(missing)
        for widths, metrics in measured.items():
            check_finite(widths, metrics)
        samples = [Sample(*self._key, widths, m, seconds, self._source) for widths, m in measured.items()]
        if self._repository.add_samples(samples) < len(samples):
            measured |= self._repository.find_samples(*self._key, missing)
        return measured


def check_finite(widths: Widths, metrics: Metrics) -> None:
    """Raises InputError unless KL, NLL and accuracy are finite numbers."""
    for name in ("kl", "nll", "accuracy"):
        value = getattr(metrics, name)
        if not math.isfinite(value):
            raise InputError(
                f"an evaluation must give a finite {name}",
                values=f"{name}={value} at FFN widths {list(widths)}",
                remedy="Check the model's weights for NaN, or evaluate in float32",
            )
