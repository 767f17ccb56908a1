"""The summary of `benchmarks.axes`: ratios of validation KL, target by target, and what has to hold of them.

All are of the worse model. Ratios compare what is better when it is below 1; gains are what a part is worth, KL without
it over KL with it, above 1 where it helps, and the worse model is that of the least gain.

`joint_vs_milp_complete` is of targets at which that program had as many evaluations as the search (`evaluations`), and
of models that have such; `lop_vs_search` compares plans, so what the search found is filled up as plans are. Where the
predictor has learnt from a search, that search's choice is a candidate: what it adds shows in between. `policy_gain` is
what a policy would be worth: plans hear none.
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import geometric_mean
from typing import Any

from benchmarks.axes_predictor import (
    GREEDY_ALONE,
    LOP,
    NO_DESCENT,
    NO_WAYS,
    POLICY_ALONE,
    UNTRAINED,
    UNTRAINED_ALONE,
    WITH_POLICY,
)
from benchmarks.axes_searches import FILLED, MILP, MILP_COMPLETE, MILP_COMPLETE_ROOTS, MILP_ROOTS, SEARCH, TREE
from benchmarks.axes_targets import JOINT, SINGLES, Kind
from pruning.planning.axis_spaces import SpaceName

MILP_FROM = 0.45
"""Share of the decoder that goes from where the additive program's independence fails; of the time, as much goes."""

AS_MANY = 0.9
"""Of a search's evaluations: an additive program of fewer is none of as many."""

LEAST_KL = 1e-6
"""In nats: less is not told apart from nothing."""

RATIOS = (
    "joint_vs_best_single",
    "joint_vs_best_single_worst",
    "joint_vs_milp",
    "joint_vs_milp_complete",
    "lop_vs_search",
    "lop_vs_search_searched",
    "lop_vs_search_between",
    "lop_vs_search_worst",
)
GAINS = (
    "policy_gain",
    "policy_gain_between",
    "untrained_policy_gain",
    "policy_alone_gain",
    "samples_gain",
    "ways_gain",
    "descent_gain",
    "tree_gain",
)
MOST = {
    "joint_vs_best_single": 0.9,
    "joint_vs_best_single_worst": 1.0,
    "joint_vs_milp": 0.95,
    "lop_vs_search": 1.05,
    "scan_evaluations_32_layers": 150,
    "http_p50_ms_joint_32_layers": 40,
    "exceeded": 0,
    "families_red_joint": 0,
}
LEAST = {"gguf_joint_agreement": 0.99}
"""What has to hold, of what is there."""

Row = Mapping[str, Any]


def summary_of(rows: Sequence[Row], others: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of the worse model, those of `others` beside them, and which of all that hold what they have to.

    A figure whose rows are not there yet is None.
    """
    models = {model: of_model([row for row in rows if row["model"] == model]) for model in _models(rows)}
    worse = {name: _worst([of[name] for of in models.values()], max) for name in RATIOS}
    enough = [of["joint_vs_milp_complete"] for of in models.values() if of["joint_vs_milp_complete"] is not None]
    worse["joint_vs_milp_complete"] = max(enough, default=None)
    worse |= {name: _worst([of[name] for of in models.values()], min) for name in GAINS}
    figures = {**worse, **others}
    known = {name: figure for name, figure in figures.items() if figure is not None}
    holds = {f"{name}_at_most_{most:g}": known[name] <= most for name, most in MOST.items() if name in known}
    holds |= {f"{name}_at_least_{least:g}": known[name] >= least for name, least in LEAST.items() if name in known}
    return {**figures, "holds": holds, "models": models}


def _models(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["model"] for row in rows))


def _worst(found: Sequence[float | None], worse: Callable[[Sequence[float]], float]) -> float | None:
    known = [x for x in found if x is not None]
    return worse(known) if known and len(known) == len(found) else None


def of_model(rows: Sequence[Row]) -> dict[str, Any]:
    """Of one model's rows; each ratio also target by target."""
    kl = {
        (row["space"], row["method"], row["kind"], row["target"]): max(row["validation_kl"], LEAST_KL) for row in rows
    }
    evaluations = {
        (row["method"], row["kind"], row["target"]): row["evaluations"] for row in rows if row["space"] == JOINT.value
    }
    targets = list(dict.fromkeys((row["kind"], row["target"]) for row in rows))

    def of(space: SpaceName, method: str, target: tuple[str, float]) -> float | None:
        return kl.get((space.value, method, *target))

    def ratios(
        over: Callable[[tuple[str, float]], float | None], method: str = SEARCH
    ) -> dict[tuple[str, float], float]:
        """Of `method` in the joint space over what `over` says of a target, where both are known."""
        pairs = {target: (of(JOINT, method, target), over(target)) for target in targets}
        return {target: a / b for target, (a, b) in pairs.items() if a is not None and b is not None}

    def best_single(target: tuple[str, float]) -> float | None:
        known = [x for name in SINGLES if (x := of(name, SEARCH, target)) is not None]
        return min(known, default=None)

    def best_single_name(target: tuple[str, float]) -> str | None:
        known = {name.value: x for name in SINGLES if (x := of(name, SEARCH, target)) is not None}
        return min(known, key=known.__getitem__, default=None)

    def additive(target: tuple[str, float], *methods: str) -> float | None:
        """The best of `methods`, where so much goes that they count."""
        kind, value = target
        gone = value if kind == Kind.SPARSITY else 1.0 - value
        known = [x for method in methods if (x := of(JOINT, method, target)) is not None]
        return min(known, default=None) if gone >= MILP_FROM - 1e-9 else None

    def complete(target: tuple[str, float]) -> float | None:
        """The best of as many evaluations as the search had."""
        needed = AS_MANY * evaluations.get((SEARCH, *target), 0.0)
        had = [x for x in (MILP_COMPLETE, MILP_COMPLETE_ROOTS) if evaluations.get((x, *target), -1.0) >= needed]
        return additive(target, *had)

    def gain(without: str, with_it: str) -> dict[tuple[str, float], float]:
        pairs = {target: (of(JOINT, without, target), of(JOINT, with_it, target)) for target in targets}
        return {target: a / b for target, (a, b) in pairs.items() if a is not None and b is not None}

    to_single = ratios(best_single)
    # What is planned is planned in fine steps: so is what the search found.
    to_search = ratios(lambda target: of(JOINT, FILLED, target), LOP)
    searched = {(row["kind"], row["target"]) for row in rows if row["searched"]}
    found = {
        "joint_vs_best_single": to_single,
        "joint_vs_milp": ratios(lambda target: additive(target, MILP, MILP_ROOTS)),
        "joint_vs_milp_complete": ratios(complete),
        "lop_vs_search": to_search,
        "lop_vs_search_searched": {target: ratio for target, ratio in to_search.items() if target in searched},
        "lop_vs_search_between": {target: ratio for target, ratio in to_search.items() if target not in searched},
        "policy_gain": gain(LOP, WITH_POLICY),
        "policy_gain_between": {t: ratio for t, ratio in gain(LOP, WITH_POLICY).items() if t not in searched},
        "untrained_policy_gain": gain(UNTRAINED, WITH_POLICY),
        "policy_alone_gain": gain(UNTRAINED_ALONE, POLICY_ALONE),
        "samples_gain": gain(GREEDY_ALONE, POLICY_ALONE),
        "ways_gain": gain(NO_WAYS, LOP),
        "descent_gain": gain(NO_DESCENT, LOP),
        "tree_gain": gain(SEARCH, TREE),
    }
    return {
        **{name: geometric_mean(of.values()) if of else None for name, of in found.items()},
        "joint_vs_best_single_worst": max(to_single.values(), default=None),
        "lop_vs_search_worst": max(to_search.values(), default=None),
        "by_target": {name: {_name(t): ratio for t, ratio in of.items()} for name, of in found.items()},
        "best_single": {_name(target): best_single_name(target) for target in to_single},
        "validation_kl": _table(rows, "validation_kl"),
        "evaluations": _table([row for row in rows if row["space"] == JOINT.value], "evaluations"),
    }


def _table(rows: Sequence[Row], field: str) -> dict[str, dict[str, float]]:
    """By space and method, then by target."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        of = found.setdefault(f"{row['space']} {row['method']}", {})
        of[_name((row["kind"], row["target"]))] = row[field]
    return found


def _name(target: tuple[str, float]) -> str:
    kind, value = target
    return f"{kind} {value:g}"
