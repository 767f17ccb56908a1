"""What a search found."""

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from mcts.targets import AllowedLatency, SearchTarget
from pruning.measuring.metrics import FoldMetrics, Metrics
from pruning.planning.bit_spaces import with_all_units
from pruning.planning.space import Choice, Space
from values.cross_validation import CrossValidation, judged_without_each
from values.sure_improvement import sure_to_be_better


@dataclass(frozen=True, slots=True)
class TargetResult:
    """The best choice of one target.

    Attributes:
        label: what was asked for, in words.
        sparsity: what was asked for, if it was a sparsity.
        budget: parameters allowed, as `SearchTarget` counts them.
        choice: option indices [N] of the least score (`Metrics.score`); where bits may change, of those that change
            nothing else, unless others are sure to be better.
        widths: the units that they keep [N], of each decision's first site.
        metrics: its metrics on the calibration set.
        evaluations: choices scored for this target, all different.
        curve: [evaluations] the least score after each evaluation.
        held_out: for each fold of the data, what the search would have chosen without it is worth on it; empty where
            there are no folds, and in a result that was stored.
        cross_validation: the same beside the dense model; None where there are no folds.
        latency: what was asked for, if it was a latency.
    """

    label: str
    sparsity: float | None
    budget: int
    choice: Choice
    widths: tuple[int, ...]
    metrics: Metrics
    evaluations: int
    curve: tuple[float, ...]
    held_out: tuple[FoldMetrics, ...] = ()
    cross_validation: CrossValidation | None = None
    latency: AllowedLatency | None = None

    @classmethod
    def of(cls, target: SearchTarget, space: Space, scored: Mapping[Choice, Metrics]) -> "TargetResult":
        """The best of all choices `scored` for `target`, in the order in which they were."""
        able = _bits_alone_unless_sure(space, scored) if space.has_bits else scored
        best = min(able, key=lambda c: able[c].score)
        return cls(
            label=target.label,
            sparsity=target.sparsity,
            budget=target.budget,
            choice=best,
            widths=space.units_of(best),
            metrics=scored[best],
            evaluations=len(scored),
            curve=tuple(itertools.accumulate((m.score for m in scored.values()), min)),
            held_out=judged_without_each(list(able.values())),
            latency=target.latency,
        )


def _bits_alone_unless_sure(space: Space, scored: Mapping[Choice, Metrics]) -> Mapping[Choice, Metrics]:
    """Those of `scored` that keep all units, if there are some; all of them where that is sure to be better.

    By cross-validation, since the best of many is the luckiest: what is chosen without a fold is judged on it. Without
    folds nothing is sure.
    """
    whole = [frozenset(kept.tolist()) for kept in with_all_units(space)]
    simple = {c: m for c, m in scored.items() if all(k in kept for k, kept in zip(c, whole, strict=True))}
    of_all, of_simple = (judged_without_each([*own.values()]) for own in (scored, simple))
    return scored if not simple or sure_to_be_better(of_all, of_simple) else simple


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The best choice per target, in the order asked for; `scan_evaluations` are shared by all of them."""

    targets: tuple[TargetResult, ...]
    scan_evaluations: int

    @property
    def evaluations(self) -> int:
        """Evaluations asked for in total, whether measured or remembered."""
        return self.scan_evaluations + sum(target.evaluations for target in self.targets)

    def cross_validated(self, dense: Metrics) -> "SearchResult":
        """With the `cross_validation` of every target; `dense` is the dense model on the same conversations."""
        if dense.folds is None:
            return self
        targets = []
        for target in self.targets:
            best, held_out = target.metrics, target.held_out
            found = CrossValidation(best.kl, best.score, held_out, dense.folds) if held_out else None
            targets.append(replace(target, cross_validation=found))
        return replace(self, targets=tuple(targets))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the inverse of `from_dict`, but for `held_out`."""
        targets = []
        for target in self.targets:
            document = asdict(target) | {"metrics": target.metrics.to_dict()}
            document |= {name: list(getattr(target, name)) for name in ("choice", "widths", "curve")}
            del document["held_out"], document["cross_validation"], document["latency"]
            if target.cross_validation is not None:
                document["cross_validation"] = target.cross_validation.to_dict()
            targets.append(document)
        document = asdict(self) | {"targets": targets}
        if any(target.latency for target in self.targets):
            # Beside the targets: versions that do not know it read the rest.
            document["latencies"] = [None if (x := target.latency) is None else x.to_dict() for target in self.targets]
        return document

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "SearchResult":
        """A worker of revision 0004 that ends after the database was upgraded has levels, "configuration", from 1."""
        targets = []
        for target in data["targets"]:
            rest = {**target}
            old = rest.pop("configuration", None)
            choice = rest["choice"] if old is None else [k - 1 for k in old]
            validated = rest.pop("cross_validation", None)
            lists = {"choice": tuple(choice), "widths": tuple(rest["widths"]), "curve": tuple(rest["curve"])}
            found = TargetResult(**{**rest, "metrics": Metrics(**rest["metrics"]), **lists})
            if validated is not None:
                found = replace(found, cross_validation=CrossValidation.from_dict(validated))
            targets.append(found)
        for index, latency in enumerate(data.get("latencies") or ()):
            if latency is not None:
                targets[index] = replace(targets[index], latency=AllowedLatency.from_dict(latency))
        return cls(targets=tuple(targets), scan_evaluations=data["scan_evaluations"])
