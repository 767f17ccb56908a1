"""How reports show quality: KL and agreement always, exact match where the dense model itself has any."""

from typing import Any, Final, Protocol

from pruning.measuring.metrics import Metrics, exact_match_tells

NO_EXACT_MATCH: Final = "exact match is left out: the dense model itself gives none of these answers exactly"
"""Said once under a report without it."""


class Quality(Protocol):
    """What was measured of a configuration, as `pruning.measuring.metrics.Metrics` has it."""

    @property
    def kl(self) -> float: ...

    @property
    def accuracy(self) -> float: ...

    @property
    def agreement(self) -> float | None: ...


def quality_columns(dense: Metrics | None, prefix: str = "") -> list[str]:
    """Headings for `quality_cells`; `dense` are the dense model's metrics on the same data, None if not known."""
    kl = f"{prefix}KL" if prefix else "KL to dense"
    return [kl, *([f"{prefix}exact match"] if exact_match_tells(dense) else []), f"{prefix}agreement"]


def quality_cells(quality: Quality, dense: Metrics | None) -> list[Any]:
    """KL, exact match if it tells anything, and agreement, "-" where that was not measured."""
    accuracy = [quality.accuracy] if exact_match_tells(dense) else []
    return [quality.kl, *accuracy, "-" if quality.agreement is None else quality.agreement]
