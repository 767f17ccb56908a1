"""The summary of the recovery benchmark: bars, and the directions that the study found."""

from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]

BARS = {0.15: 99.0, 0.3: 97.0, 0.45: 90.0, 0.6: 80.0}
"""Percent of dense that `ours` is to have at each ratio."""
BEST, SMALL, ALL = "sft+kd-hidden", 0.05, 1.0


def percent(row: Row, when: str = "after") -> float:
    """Of dense, on validation."""
    return float(row["validation"][when]["percent_of_dense"]["percent"])


def figures(rows: Sequence[Row]) -> Row:
    """What can be said from the rows that there are."""
    grid = {(x["paradigm"], x["ratio"], x["recovery"], x["data"]): x for x in rows if "paradigm" in x}
    by_part: dict[str, list[Row]] = {}
    for row in rows:
        by_part.setdefault(row.get("part", "grid"), []).append(row)
    found: Row = {}
    for row in by_part.get("goal", ()):
        share = row["validation"]["after"]["percent_of_dense"]
        found |= {
            "reference_percent_of_dense": share["percent"],
            "reference_percent_interval": share["interval"],
            "reference_percent_before": percent(row, "before"),
        }
    ours = {ratio: grid["ours", ratio, BEST, ALL] for ratio in BARS if ("ours", ratio, BEST, ALL) in grid}
    found["at_15_30_45_60"] = {str(ratio): percent(row) for ratio, row in ours.items()}
    found["at_15_30_45_60_bars"] = {str(ratio): bar for ratio, bar in BARS.items()}
    found["at_15_30_45_60_of_paradigms"] = {
        str(ratio): {p: percent(x) for (p, *how), x in grid.items() if how == [ratio, BEST, ALL]} for ratio in ours
    }
    found["directions"] = _directions(grid)
    found |= _chosen(by_part.get("chosen", ()))
    worse = by_part.get("worse", [])
    if worse:
        ended = [row["name"] for row in worse if row["validation"]["accuracy_change"][1] < 0]
        starts = sum(row["written"] == "start" for row in worse)
        found |= {"runs": len(worse), "runs_worse": len(ended), "worse": ended, "runs_that_kept_the_start": starts}
    control = {
        str(x["ratio"]): {"random": percent(x), "before": percent(x, "before")} for x in by_part.get("control", ())
    }
    for ratio, both in control.items():
        if (pruned := grid.get(("ours", float(ratio), BEST, SMALL))) is not None:
            both["pruned"] = percent(pruned)
    found["control"] = control
    for row in by_part.get("smollm2", ()):
        found["smollm2_kl_ratio"] = row["kl_after"] / row["kl_before"]
    killed = by_part.get("killed", [])
    if killed:
        found["killed_ends_equal"] = all(row["is_equal"] and row["was_killed"] for row in killed)
        found["peak_memory_bytes"] = {row["mode"]: row["peak_memory_bytes"] for row in killed}
    return found


def _chosen(rows: Iterable[Row]) -> Row:
    """Exact answers after recovery of the plan chosen for after over those of the plan chosen for before, by ratio.

    `best_before_is_best_after`: whether the choice was between two different plans at all.
    """
    accuracy: dict[str, dict[str, float]] = {}
    same: dict[str, bool] = {}
    for row in rows:
        ratio = str(row["ratio"])
        accuracy.setdefault(ratio, {})[row["chosen_for"]] = float(row["validation"]["after"]["accuracy"])
        same[ratio] = row["best_before_is_best_after"]
    both = {ratio: x for ratio, x in accuracy.items() if x.get("before") and "after" in x}
    return {
        "chosen_after_vs_before": {ratio: x["after"] / x["before"] for ratio, x in both.items()} or None,
        "best_before_is_best_after": same,
    }


def _directions(grid: dict[tuple[str, float, str, float], Row]) -> Row:
    """Each with the pairs of percents that it rests on, the one that should be higher first, and how often it is.

    `found`: always; None where nothing was measured.
    """
    ratios = sorted({ratio for _, ratio, _, _ in grid})

    def pairs(higher: tuple[str, str, float], lower: tuple[str, str, float], of: Iterable[float] = ratios) -> Row:
        keys = [tuple((p, r, how, data) for p, how, data in (higher, lower)) for r in of]
        both = [(grid[a], grid[b]) for a, b in keys if a in grid and b in grid]
        times = sum(percent(a) > percent(b) for a, b in both)
        return {
            "found": times == len(both) if both else None,
            "times": times,
            "of": len(both),
            "pairs": [[percent(a), percent(b)] for a, b in both],
            "intervals": [[x["validation"]["after"]["percent_of_dense"]["interval"] for x in pair] for pair in both],
        }

    others = {
        loss: pairs(("ours", BEST, SMALL), ("ours", loss, SMALL))
        for loss in ("sft", "kd-logits", "kd-hidden", "projector")
    }
    kept = {
        f"{paradigm} {ratio}": percent(small) / percent(whole)
        for paradigm in ("layerwise", "widthwise", "ours")
        for ratio in ratios
        if (small := grid.get((paradigm, ratio, BEST, SMALL))) and (whole := grid.get((paradigm, ratio, BEST, ALL)))
        if percent(whole)
    }
    return {
        "widthwise_beats_layerwise_with_5_percent": pairs(("widthwise", BEST, SMALL), ("layerwise", BEST, SMALL)),
        "projector_under_20_percent": pairs(("widthwise", "projector", ALL), ("widthwise", BEST, ALL), (0.15,)),
        "sft_and_hidden_is_best": others,
        "5_percent_keeps_95_percent_of_all": {"found": min(kept.values()) >= 0.95 if kept else None, "kept": kept},
    }
