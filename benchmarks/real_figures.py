"""Rows and summary of the real benchmark, from what its commands printed."""

from collections.abc import Mapping, Sequence
from statistics import geometric_mean
from typing import Any

from pruning.allocators.methods import Method

METHODS = (
    Method.MCTS,
    Method.LOP,
    Method.ADDITIVE_DP,
    Method.EVOLUTION,
    Method.RANDOM,
    Method.UNIFORM,
    Method.FLAP,
    Method.OWL,
    Method.WANDA_SP,
    Method.LLM_PRUNER,
    Method.SHORTGPT,
)
SEARCHES = (Method.MCTS, Method.EVOLUTION, Method.RANDOM)
OURS = (Method.MCTS, Method.LOP)

Row = Mapping[str, Any]


def rows_of(
    plans: Sequence[Row], searched: Sequence[float], seconds: Mapping[str, float], seed: int
) -> list[dict[str, Any]]:
    """A row a plan of `lop compare`. `seconds` by method: all of its commands, which serve all `searched` targets."""
    return [
        {
            "method": plan["method"],
            "sparsity": plan["sparsity"],
            "seed": seed,
            "searched": plan["sparsity"] in searched,
            "achieved_sparsity": plan["achieved_sparsity"],
            "plan_id": plan["plan_id"],
            "kl": plan["kl"],
            "agreement": plan.get("agreement"),
            "nll": plan["nll"],
            "exact_match": plan["accuracy"],
            "filled_up": plan["filled_up"],
            "seconds": seconds[plan["method"]] / len(searched),
        }
        for plan in plans
    ]


def seconds_of(steps: Mapping[str, float], scan_share: float) -> dict[str, float]:
    """Wall clock of all commands behind a method's plans, by method; registering is behind all of them.

    `scan_share` is the scan's part of the tree search's evaluations: what the additive program needs of it. The
    predictor learns from all three searches.
    """
    own: dict[str, float] = dict.fromkeys(METHODS, 0.0)
    own |= {method: steps[f"search {method}"] for method in SEARCHES}
    own[Method.ADDITIVE_DP] = scan_share * steps[f"search {Method.MCTS}"]
    own[Method.LLM_PRUNER] = steps["measure"]
    own[Method.LOP] = steps["train"] + sum(steps[f"search {method}"] for method in SEARCHES)
    return {str(method): steps["add"] + value for method, value in own.items()}


def geomean_vs_best_other(rows: Sequence[Row], method: str, sparsities: Sequence[float]) -> float | None:
    """Geometric mean over `sparsities` of the KL of `method` over the least of all methods that are not ours.

    None where a sparsity lacks a row of it, or of all others.
    """
    ratios: list[float] = []
    for sparsity in sparsities:
        at = [row for row in rows if row["sparsity"] == sparsity]
        own = [row["kl"] for row in at if row["method"] == method]
        others = [row["kl"] for row in at if row["method"] not in OURS]
        if not own or not others:
            return None
        ratios.append(own[0] / min(others))
    return geometric_mean(ratios)


def missing_rows(rows: Sequence[Row], sparsities: Sequence[float]) -> list[str]:
    """Methods and sparsities that ought to have a row and have none."""
    there = {(row["method"], row["sparsity"]) for row in rows}
    return [f"{m} at {s:g}" for m in METHODS for s in sparsities if (str(m), s) not in there]


def comparison_figures(rows: Sequence[Row], searched: Sequence[float], unsearched: Sequence[float]) -> dict[str, Any]:
    """The ratios of the summary; those over 1 say that another method was better."""
    return {
        "validation_geomean_vs_best_other": geomean_vs_best_other(rows, Method.MCTS, searched),
        "lop_validation_geomean_vs_best_other": geomean_vs_best_other(rows, Method.LOP, searched),
        "lop_unsearched_geomean_vs_best_other": geomean_vs_best_other(rows, Method.LOP, unsearched),
        "missing_rows": missing_rows(rows, searched),
    }


_EXPECTED = (
    ("kl", "kl", "interval"),
    ("accuracy", "exact_match", "accuracy_interval"),
    ("agreement", "agreement", "agreement_interval"),
)
"""A figure's name, what a row calls it when it was measured, and what a plan calls its interval."""


def expectation_figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Of the rows with a plan's `predicted`: the share whose 90% interval holds what was measured, of each figure (None
    where no plan has one); their number, which is small, and all are measured on the same conversations; and the
    geometric mean of measured over predicted KL.
    """
    own = [row for row in rows if "predicted" in row]
    found: dict[str, Any] = {}
    for name, measured, interval in _EXPECTED:
        pairs = [(row[measured], row["predicted"].get(interval)) for row in own]
        held = [low <= value <= high for value, (low, high) in ((v, i) for v, i in pairs if None not in (v, i))]
        found[f"lop_coverage_{name}"] = sum(held) / len(held) if held else None
    found["lop_covered_plans"] = len(own)
    found["lop_bias_kl"] = geometric_mean(row["kl"] / row["predicted"]["quality"] for row in own) if own else None
    return found
