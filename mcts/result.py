"""What a search found."""

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mcts.settings import SearchTarget
from pruning.measuring.metrics import Metrics
from pruning.planning.levels import Configuration, LevelGrid


@dataclass(frozen=True, slots=True)
class TargetResult:
    """The best configuration of one target.

    Attributes:
        label: what was asked for, in words.
        sparsity: what was asked for, if it was a sparsity.
        budget: FFN parameters allowed.
        configuration: levels [L] of least KL.
        widths: its FFN widths [L].
        metrics: its metrics on the calibration set.
        evaluations: configurations scored for this target, all different.
        curve: [evaluations] least KL after each evaluation.
    """

    label: str
    sparsity: float | None
    budget: int
    configuration: Configuration
    widths: tuple[int, ...]
    metrics: Metrics
    evaluations: int
    curve: tuple[float, ...]

    @classmethod
    def of(cls, target: SearchTarget, grid: LevelGrid, scored: Mapping[Configuration, Metrics]) -> "TargetResult":
        """The best of all configurations `scored` for `target`, in the order in which they were."""
        best = min(scored, key=lambda c: scored[c].kl)
        return cls(
            label=target.label,
            sparsity=target.sparsity,
            budget=target.budget,
            configuration=best,
            widths=tuple(grid.widths_of(best)),
            metrics=scored[best],
            evaluations=len(scored),
            curve=tuple(itertools.accumulate((m.kl for m in scored.values()), min)),
        )


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The best configuration per target, in the order asked for; `scan_evaluations` are shared by all of them."""

    targets: tuple[TargetResult, ...]
    scan_evaluations: int

    @property
    def evaluations(self) -> int:
        """Evaluations asked for in total, whether measured or remembered."""
        return self.scan_evaluations + sum(target.evaluations for target in self.targets)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the inverse of `from_dict`."""
        targets = []
        for target in self.targets:
            lists = {name: list(getattr(target, name)) for name in ("configuration", "widths", "curve")}
            targets.append(asdict(target) | {"metrics": target.metrics.to_dict()} | lists)
        return asdict(self) | {"targets": targets}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "SearchResult":
        targets = tuple(
            TargetResult(
                **{
                    **target,
                    "metrics": Metrics(**target["metrics"]),
                    **{name: tuple(target[name]) for name in ("configuration", "widths", "curve")},
                }
            )
            for target in data["targets"]
        )
        return cls(targets=targets, scan_evaluations=data["scan_evaluations"])
