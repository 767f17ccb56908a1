"""The parts of `benchmarks.axes` that search: what each asks of one model, and the rows that come of it.

A part is a function of the model's run. It may be killed at any moment: every evaluation is kept as soon as it is
known, a training goes on from its checkpoint, and run again a part does the same again without measuring.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks import axes_predictor
from benchmarks.axes_models import MODELS, AxesModel, Sizes
from benchmarks.axes_predictor import LOP
from benchmarks.axes_profile import machine_latency
from benchmarks.axes_searches import (
    MILP,
    MILP_COMPLETE,
    MILP_COMPLETE_ROOTS,
    MILP_ROOTS,
    SEARCH,
    TREE,
    AxisSearch,
    Found,
)
from benchmarks.axes_targets import (
    BETWEEN,
    BETWEEN_LATENCIES,
    JOINT,
    LATENCIES,
    SINGLES,
    SPARSITIES,
    Kind,
    Target,
    TargetLimits,
)
from benchmarks.measured_model import CALIBRATION, VALIDATION
from benchmarks.steps import Steps, say
from policy_model.predictor import Predictor
from pruning.errors import InputError
from pruning.planning.axis_spaces import SPACES_OF_UNITS, SpaceName
from pruning.planning.latency_model import LatencyModel
from pruning.planning.prices import LatencyPrice
from pruning.planning.scope import Scope
from pruning.planning.target import achieved_sparsity

LEAST_SHARE = 1e-9
"""What rounding may make of a share."""


@dataclass
class ModelRun:
    """One model with its settings, loaded when it is first needed."""

    name: str
    sizes: Sizes
    seed: int
    work: Path
    steps: Steps

    @cached_property
    def model(self) -> AxesModel:
        return MODELS[self.name](self.sizes, self.work, self.steps)

    @cached_property
    def latency(self) -> LatencyModel:
        """Of this machine."""
        return machine_latency(self.model.timed, self.work)

    def limits(self, *, of_time: bool = False) -> TargetLimits:
        """With `of_time`, of targets of time too: the machine is measured for them."""
        return TargetLimits(self.model.measured.anatomy, self.latency if of_time else None)

    def search(self, space: SpaceName, limits: TargetLimits) -> AxisSearch:
        """All methods in `space`."""
        return AxisSearch(self.model.measured, space, limits, evaluations=self.sizes.evaluations, seed=self.seed)

    def rows(self, space: SpaceName, found: Sequence[Found], limits: TargetLimits) -> list[dict[str, Any]]:
        """Each judged, in its order."""
        rows = [self._row(space, of, limits) for of in found]
        for row in rows:
            target, kl = f"{row['kind']} {row['target']:g}", row["validation_kl"]
            say(f"{self.name} {space} {row['method']} {target}: validation KL {kl:.4g}")
        return rows

    def _row(self, space: SpaceName, found: Found, limits: TargetLimits) -> dict[str, Any]:
        model, kept = self.model.measured, found.architecture
        check_met(found, limits)
        calibration, validation = model.measure(CALIBRATION, kept), model.measure(VALIDATION, kept)
        price = None if limits.latency is None else LatencyPrice(model.anatomy, limits.latency)
        return {
            "model": self.name,
            "space": space.value,
            "method": found.method,
            "kind": found.target.kind.value,
            "target": found.target.value,
            "searched": found.target.searched,
            "seed": self.seed,
            "evaluations": found.evaluations,
            "scored_tokens": found.evaluations * model.answer_tokens,
            "calibration_kl": calibration.kl,
            "validation_kl": validation.kl,
            "validation_agreement": validation.agreement,
            "validation_accuracy": validation.accuracy,
            "achieved_sparsity": achieved_sparsity(model.anatomy, kept)[Scope.DECODER],
            "achieved_latency": None if price is None else price.cost(kept) / price.total,
            "ffn": list(model.anatomy.ffn_widths(kept)),
            "attention": list(model.anatomy.kv_groups(kept)),
        }

    def predictor(self, space: SpaceName) -> Predictor | None:
        """Trained on the search of all targets; None where that scored too little to train on."""
        search = self.search(space, self.limits(of_time=True))
        searches = search.searched((*SPARSITIES, *LATENCIES))
        try:
            return axes_predictor.train(
                self.model.measured, space, search.scanned(), searches, self.work, seed=self.seed
            )
        except InputError as error:
            say(f"{self.name} {space}: no predictor, since {error}")
            return None


def check_met(found: Found, limits: TargetLimits) -> None:
    """Raises RuntimeError if what was found does not meet its target."""
    target = found.target
    if target.kind is Kind.LATENCY and limits.latency is not None:
        price = LatencyPrice(limits.anatomy, limits.latency)
        met = price.cost(found.architecture) <= target.value * price.total
    else:
        removed = achieved_sparsity(limits.anatomy, found.architecture)[Scope.DECODER]
        met = removed >= target.value - LEAST_SHARE
    if not met:
        raise RuntimeError(f"{found.method} does not meet {target.name}: {found.architecture.document()}")


def singles(run: ModelRun) -> dict[str, Any]:
    """Every method at the sparsities, in the spaces that change one thing."""
    return _methods_at(run, SINGLES, SPARSITIES, run.limits())


def joint(run: ModelRun) -> dict[str, Any]:
    """The same in the space that changes all of them."""
    return _methods_at(run, (JOINT,), SPARSITIES, run.limits())


def latencies(run: ModelRun) -> dict[str, Any]:
    """Every method at the shares of the dense model's time, in every space."""
    found = _methods_at(run, SPACES_OF_UNITS, LATENCIES, run.limits(of_time=True), before=SPARSITIES)
    return found | {"latency_source": run.latency.source.value, "dense_ms": _dense_ms(run)}


def predictors(run: ModelRun) -> dict[str, Any]:
    """A predictor of every space at all targets, searched and between; in the joint space also a search of those in
    between, which knows all that the predictor does, and plans with parts left out."""
    limits = run.limits(of_time=True)
    rows = _planned(run, limits, (*SPARSITIES, *BETWEEN, *LATENCIES, *BETWEEN_LATENCIES))
    between = (*BETWEEN, *BETWEEN_LATENCIES)
    search = run.search(JOINT, limits)
    found = [x for x in search.searched((*SPARSITIES, *LATENCIES, *between)) if x.target in between]
    rows += run.rows(JOINT, [*found, *search.filled(found)], limits)
    return {"rows": rows}


def tree(run: ModelRun) -> dict[str, Any]:
    """The joint search with simulations of the tree, at the sparsities."""
    limits = run.limits()
    return {"rows": run.rows(JOINT, run.search(JOINT, limits).searched(SPARSITIES, TREE), limits)}


PARTS: dict[str, Callable[[ModelRun], dict[str, Any]]] = {
    "singles": singles,
    "joint": joint,
    "latencies": latencies,
    "predictors": predictors,
    "tree": tree,
}


def _planned(run: ModelRun, limits: TargetLimits, targets: Sequence[Target]) -> list[dict[str, Any]]:
    """Rows of the predictors' plans of every space; in the joint one with parts left out, too."""
    rows = []
    for space in SPACES_OF_UNITS:
        predictor = run.predictor(space)
        if predictor is not None:
            methods = tuple(axes_predictor.PARTS) if space is JOINT else (LOP,)
            found = axes_predictor.plans(predictor, run.model.measured, space, limits, targets, methods)
            rows += run.rows(space, found, limits)
    return rows


def _methods_at(
    run: ModelRun,
    spaces: Iterable[SpaceName],
    targets: Sequence[Target],
    limits: TargetLimits,
    *,
    before: Sequence[Target] = (),
) -> dict[str, Any]:
    """Every method at `targets`; the search has been at those of `before` first, whose scores it knows."""
    rows: list[dict[str, Any]] = []
    scans: dict[str, int] = {}
    for space in spaces:
        search = run.search(space, limits)
        scans[space.value] = search.scan_evaluations
        rows += run.rows(space, search.unsearched(targets), limits)
        found = [x for x in search.searched((*before, *targets), SEARCH) if x.target in targets]
        rows += run.rows(space, [*found, *(search.filled(found) if space is JOINT else ())], limits)
        complete = (MILP_COMPLETE, MILP_COMPLETE_ROOTS) if space is JOINT else ()
        for method in (MILP, MILP_ROOTS, *complete):
            rows += run.rows(space, search.additive(targets, method), limits)
        if run.sizes.evolution_everywhere or space is JOINT:
            rows += run.rows(space, search.evolved(targets), limits)
    return {"rows": rows, "scan_evaluations": scans}


def _dense_ms(run: ModelRun) -> float:
    return LatencyPrice(run.model.measured.anatomy, run.latency).total / 1e6
