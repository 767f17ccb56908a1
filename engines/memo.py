"""Scoring configurations through the database: what was measured once is never measured again."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pruning.anatomy.architecture import Architecture
from pruning.errors import InputError
from pruning.measuring.metrics import Metrics
from storage.contract import Samples
from storage.records import Sample


@dataclass(frozen=True, slots=True)
class Measured:
    """Metrics, and the seconds that measuring them took where it was done."""

    metrics: Metrics
    seconds: float


EvaluateInOrder = Callable[[Sequence[Architecture]], Iterable[Measured]]
"""An engine: measures a model cut to each of n architectures; gives n Measured in the same order.

Each as soon as it and those before it are known: then no more than what is being measured is lost if the process is
killed.
"""


class MemoisedEvaluator:
    """An Evaluate that looks in the repository first and stores every new result at once.

    Args:
        repository: where samples are.
        model_id, ranking_sha256, calibration_id: what the samples are of.
        evaluate: measures what is missing.
        source: stored with each new sample.
        protocol: what the engine does after cutting and before scoring, as in `storage.records.Sample`.

    What a call returns depends only on what is stored in the end: if another process stored a configuration first, its
    metrics are the ones returned. So a search that is run again reads the same numbers. Where samples of the same
    conversations were stored before there was root KL, KL is the score of all: scores of both kinds are not compared.
    """

    def __init__(
        self,
        repository: Samples,
        model_id: str,
        ranking_sha256: str,
        calibration_id: str,
        evaluate: EvaluateInOrder,
        source: str,
        *,
        protocol: str = "",
    ) -> None:
        self._repository = repository
        self._key = (model_id, ranking_sha256, calibration_id)
        self._evaluate = evaluate
        self._source, self._protocol = source, protocol
        self._by_kl = repository.is_scored_by_kl(*self._key, protocol=protocol)

    def __call__(self, architectures: Sequence[Architecture], /) -> list[Metrics]:
        """Metrics of `architectures` [n], in order. Raises InputError if a measured metric is not finite."""
        known = self._find(architectures)
        missing = [a for a in dict.fromkeys(architectures) if a not in known]
        if missing:
            known |= self._measure(missing)
        return [known[a].scored_by_kl() if self._by_kl else known[a] for a in architectures]

    def _measure(self, missing: list[Architecture]) -> dict[Architecture, Metrics]:
        stored: dict[Architecture, Metrics] = {}
        for architecture, measured in zip(missing, self._evaluate(missing), strict=True):
            check_finite(architecture, measured.metrics)
            sample = Sample(*self._key, architecture, measured.metrics, measured.seconds, self._source, self._protocol)
            if self._repository.add_samples([sample]):
                stored[architecture] = measured.metrics
            else:  # another process was first
                stored |= self._find([architecture])
        return stored

    def _find(self, architectures: Sequence[Architecture]) -> dict[Architecture, Metrics]:
        return self._repository.find_samples(*self._key, architectures, protocol=self._protocol)


def check_finite(architecture: Architecture, metrics: Metrics) -> None:
    """Raises InputError unless KL, NLL, accuracy and, where it was measured, agreement are finite numbers."""
    for name in ("kl", "nll", "accuracy", "agreement"):
        value = getattr(metrics, name)
        if value is not None and not math.isfinite(value):
            raise InputError(
                f"an evaluation must give a finite {name}",
                values=f"{name}={value} at {architecture.document()}",
                remedy="Check the model's weights for NaN, or evaluate in float32",
            )
