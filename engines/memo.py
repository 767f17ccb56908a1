"""Scoring configurations through the database: what was measured once is never measured again."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from pruning.errors import InputError
from pruning.measuring.metrics import Metrics, Widths
from storage.contract import Repository
from storage.records import Sample


class EvaluateInOrder(Protocol):
    """Measures a model pruned to each of `widths` [n][L]; gives n Metrics in the same order.

    All at once as an Evaluate does, or each as soon as it and those before it are known: then no more than what is
    being measured is lost if the process is killed.
    """

    def __call__(self, widths: Sequence[Widths], /) -> Iterable[Metrics]: ...


class MemoisedEvaluator:
    """An Evaluate that looks in the repository first and stores every new result at once.

    Args:
        repository: where samples are.
        model_id, ranking_sha256, calibration_id: what the samples are of.
        evaluate: measures what is missing.
        source: stored with each new sample.
        clock: seconds, monotonic; a sample's are those since the one before it.

    What a call returns depends only on what is stored in the end: if another process stored a configuration first, its
    metrics are the ones returned. So a search that is run again reads the same numbers.
    """

    def __init__(
        self,
        repository: Repository,
        model_id: str,
        ranking_sha256: str,
        calibration_id: str,
        evaluate: EvaluateInOrder,
        source: str,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._repository = repository
        self._key = (model_id, ranking_sha256, calibration_id)
        self._evaluate = evaluate
        self._source = source
        self._clock = clock

    def __call__(self, widths: Sequence[Widths], /) -> list[Metrics]:
        """Metrics of `widths` [n][L], in order. Raises InputError if a measured metric is not finite."""
        known = self._repository.find_samples(*self._key, widths)
        missing = [w for w in dict.fromkeys(widths) if w not in known]
        if missing:
            known |= self._measure(missing)
        return [known[w] for w in widths]

    def _measure(self, missing: list[Widths]) -> dict[Widths, Metrics]:
        stored: dict[Widths, Metrics] = {}
        before = self._clock()
        for widths, metrics in zip(missing, self._evaluate(missing), strict=True):
            check_finite(widths, metrics)
            now = self._clock()
            sample = Sample(*self._key, widths, metrics, now - before, self._source)
            is_new = self._repository.add_samples([sample]) == 1
            stored[widths] = metrics if is_new else self._repository.find_samples(*self._key, [widths])[widths]
            before = now
        return stored


def check_finite(widths: Widths, metrics: Metrics) -> None:
    """Raises InputError unless KL, NLL, accuracy and, where it was measured, agreement are finite numbers."""
    for name in ("kl", "nll", "accuracy", "agreement"):
        value = getattr(metrics, name)
        if value is not None and not math.isfinite(value):
            raise InputError(
                f"an evaluation must give a finite {name}",
                values=f"{name}={value} at FFN widths {list(widths)}",
                remedy="Check the model's weights for NaN, or evaluate in float32",
            )
