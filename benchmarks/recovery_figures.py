"""The summary of the recovery benchmark: bars, and the directions that the study found. What counts is a number of its
own, under a name of its own; what it rests on stands in the rows."""

import math
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

from benchmarks.recovery_smollm2 import CUT, RECONSTRUCTED

Row = dict[str, Any]
Key = tuple[str, float, str, float]
"""Paradigm, ratio, recovery, share of the data."""

BARS = {0.15: 99.0, 0.3: 97.0, 0.45: 90.0, 0.6: 80.0}
"""Percent of dense that `ours` is to have at each ratio."""
BEST, SMALL, ALL = "sft+kd-hidden", 0.05, 1.0
_PARADIGMS = ("layerwise", "widthwise", "ours")
LOSSES = ("sft", "kd-logits", "kd-hidden")
"""Those that `BEST` is held against."""
_ENOUGH = 1.0
"""Points of percent of dense that the projector alone may be behind and still be enough."""
_COMPARABLE = 0.75
"""The share that a layerwise cut is to have lost, at least, of what the widthwise one has: whole layers go, and at 15%
of twelve only one does, 8%. What is easier to cut cannot show which way of cutting is better."""
_KEEPS = 95.0
"""Percent of what all data give that 5% are to keep."""
CHOSEN_RATIOS = (0.45, 0.6)
"""At which the plan chosen for after recovery is held against the one chosen for before."""
_AT_ALL = "at_" + "_".join(f"{100 * ratio:.0f}" for ratio in BARS)
_CHOSEN = "chosen_after_vs_before"

LEAST = {
    "reference_percent_of_dense": 95.0,
    _AT_ALL: 0.0,
    f"{_AT_ALL}_over_paradigms": 0.0,
    "runs": 20,
    _CHOSEN: 1.0,
}
"""What figures are to be at least."""
MOST = {
    "reference_training_minutes": 10.0,
    "runs_worse": 0,
    "smollm2_kl_ratio": 0.5,
    "smollm2_reconstructed_kl_ratio": 0.5,
    "smollm2_training_minutes": 30.0,
}
"""What figures are to be at most."""


def percent(row: Row, when: str = "after") -> float:
    """Of dense, on validation."""
    return float(row["validation"][when]["percent_of_dense"]["percent"])


def figures(rows: Sequence[Row]) -> Row:
    """What can be said from the rows that there are."""
    grid: dict[Key, Row] = {(x["paradigm"], x["ratio"], x["recovery"], x["data"]): x for x in rows if "paradigm" in x}
    by_part: dict[str, list[Row]] = {}
    for row in rows:
        by_part.setdefault(row.get("part", "grid"), []).append(row)
    found: Row = {}
    for row in by_part.get("goal", ()):
        of = "" if row["plan"] == "lop" else f"_{row['plan']}"
        found |= {
            f"reference_percent_of_dense{of}": percent(row),
            f"reference_percent_interval{of}": row["validation"]["after"]["percent_of_dense"]["interval"],
            f"reference_percent_before{of}": percent(row, "before"),
            f"reference_training_minutes{of}": row["training_seconds"] / 60,
        }
    found |= (
        _at_ratios(grid)
        | _reconstructed(grid)
        | _directions(grid)
        | _chosen(by_part.get("chosen", ()))
        | _worse(rows, by_part)
    )
    for row in by_part.get("control", ()):
        name = _name(row["ratio"])
        found[f"control_random_{name}"] = percent(row)
        if (pruned := grid.get(("ours", row["ratio"], BEST, SMALL))) is not None:
            found[f"control_pruned_{name}"] = percent(pruned)
    found |= _smollm2(by_part.get("smollm2", ()))
    if killed := by_part.get("killed", []):
        found["killed_ends_equal"] = all(row["is_equal"] and row["proves"] for row in killed)
        found |= {f"peak_memory_bytes_{row['mode']}": row["peak_memory_bytes"] for row in killed}
    return found | {"holds": _holds(found)}


def _smollm2(rows: Sequence[Row]) -> Row:
    """KL after training over that of the model as it was cut, and the longer training of both."""
    by_start = {row["start"]: row for row in rows}
    if CUT not in by_start:
        return {}
    ratios = {start: row["kl_after"] / by_start[CUT]["kl_before"] for start, row in by_start.items()}
    found: Row = {"smollm2_kl_ratio": ratios[CUT]}
    if RECONSTRUCTED in ratios:
        found["smollm2_reconstructed_kl_ratio"] = ratios[RECONSTRUCTED]
    found["smollm2_training_minutes"] = max(row["training_seconds"] for row in rows) / 60
    return found


def _holds(found: Row) -> dict[str, bool]:
    """What has to hold of the figures that there are, by figure and bar."""
    holds = {f"{name}_at_least_{bar:g}": found[name] >= bar for name, bar in LEAST.items() if name in found}
    holds |= {f"{name}_at_most_{bar:g}": found[name] <= bar for name, bar in MOST.items() if name in found}
    return holds | {name: found[name] for name in ("killed_ends_equal",) if name in found}


def _at_ratios(grid: dict[Key, Row]) -> Row:
    """Ours with the best recipe on all data, the bar, how many points it is above the better paradigm, and the shares
    of the decoder that all three have lost, which differ (`benchmarks.recovery_models`).

    Where all ratios are there, the least margin over the bars, and over the paradigms, is a number of its own.
    """
    found: Row = {}
    for ratio, bar in BARS.items():
        row = grid.get(("ours", ratio, BEST, ALL))
        if row is None:
            continue
        name = _name(ratio)
        found |= {f"at_{name}": percent(row), f"at_{name}_bar": bar, f"at_{name}_before": percent(row, "before")}
        every = {p: grid[key] for p in _PARADIGMS if (key := (p, ratio, BEST, ALL)) in grid}
        found |= {f"at_{name}_removed_{p}": own["removed"] for p, own in every.items()}
        if len(every) == len(_PARADIGMS):
            best = max((own for p, own in every.items() if p != "ours"), key=percent)
            found[f"at_{name}_over_paradigms"] = percent(row) - percent(best)
            found[f"at_{name}_over_paradigms_interval"] = difference([(row, best)])[1]
    names = [_name(ratio) for ratio in BARS]
    if all(f"at_{name}" in found for name in names):
        found[_AT_ALL] = min(found[f"at_{name}"] - found[f"at_{name}_bar"] for name in names)
    if all(f"at_{name}_over_paradigms" in found for name in names):
        found[f"{_AT_ALL}_over_paradigms"] = min(found[f"at_{name}_over_paradigms"] for name in names)
    return found


def _reconstructed(grid: dict[Key, Row]) -> Row:
    """Of each cut whose rest is solved for and not trained: the start of the training that the row is of."""
    found: Row = {}
    for (paradigm, ratio, recovery, _), row in sorted(grid.items()):
        if recovery == "reconstruction":
            share = row["validation"]["before"]["percent_of_dense"]
            name = f"reconstruction_{paradigm}_{_name(ratio)}"
            found |= {name: share["percent"], f"{name}_interval": share["interval"]}
    return found


def _worse(rows: Sequence[Row], by_part: dict[str, list[Row]]) -> Row:
    """Of the part that wants to end badly, and of every training that there is.

    Worse is what has fewer exact answers, or is farther from the dense model, by more than the interval's noise.
    """
    found: Row = {}
    for name, own in (("", by_part.get("worse", [])), ("all_", [x for x in rows if "validation" in x])):
        if own:
            fewer = [row["name"] for row in own if row["validation"]["accuracy_change"][1] < 0]
            farther = [row["name"] for row in own if row["validation"]["kl_change"][0] > 0]
            worse = sorted({*fewer, *farther})
            found |= {
                f"{name}runs": len(own),
                f"{name}runs_worse": len(worse),
                f"{name}runs_with_fewer_exact_answers": len(fewer),
                f"{name}runs_farther_from_dense": len(farther),
                f"{name}runs_that_kept_the_start": sum(row["written"] == "start" for row in own),
                f"{name}worse": worse,
            }
    return found


def _chosen(rows: Iterable[Row]) -> Row:
    """Exact answers after recovery of the plan chosen for after over those of the plan chosen for before, by ratio.

    `best_before_is_best_after`: whether the choice was between two different plans at all. Where both ratios are there,
    the lesser figure is a number of its own.
    """
    by_ratio: dict[float, dict[str, Row]] = {}
    for row in rows:
        by_ratio.setdefault(row["ratio"], {})[row["chosen_for"]] = row
    found: Row = {}
    for ratio, both in sorted(by_ratio.items()):
        before, after = both.get("before"), both.get("after")
        if before is None or after is None or not percent(before):
            continue
        name = _name(ratio)
        exact = [float(row["validation"]["after"]["accuracy"]) for row in (after, before)]
        found[f"{_CHOSEN}_{name}"] = exact[0] / exact[1]
        points = difference([(after, before)])[1]
        found[f"{_CHOSEN}_{name}_interval"] = [1 + x / percent(before) for x in points]
        found[f"best_before_is_best_after_{name}"] = after["best_before_is_best_after"]
    names = [f"{_CHOSEN}_{_name(ratio)}" for ratio in CHOSEN_RATIOS]
    if all(name in found for name in names):
        found[_CHOSEN] = min(found[name] for name in names)
    return found


def _directions(grid: dict[Key, Row]) -> Row:
    """What the study found, each with the points of percent of dense that it rests on and their interval.

    `..._found`: whether it is beyond the noise here, by the lower end; False is "not found here".
    """
    ratios = sorted({ratio for _, ratio, _, _ in grid})

    def pairs(higher: tuple[str, str, float], lower: tuple[str, str, float]) -> list[tuple[Row, Row]]:
        keys = [tuple((p, ratio, how, data) for p, how, data in (higher, lower)) for ratio in ratios]
        return [(grid[a], grid[b]) for a, b in keys if a in grid and b in grid]

    found: Row = {}
    small = pairs(("widthwise", BEST, SMALL), ("layerwise", BEST, SMALL))
    comparable = [(wide, deep) for wide, deep in small if deep["removed"] >= _COMPARABLE * wide["removed"]]
    for name, when in (
        ("widthwise_over_layerwise_5_percent", "after"),
        ("widthwise_over_layerwise_untrained", "before"),
    ):
        if comparable:
            found |= _direction(name, comparable, least=0.0, when=when)
        for wide, deep in small:
            points, interval = difference([(wide, deep)], when)
            own = f"{name}_{_name(wide['ratio'])}"
            shares = {x["paradigm"]: x["removed"] for x in (wide, deep)}
            found |= {own: points, f"{own}_interval": interval, f"{own}_removed": shares}
    low = [
        (grid[p, ratio, "projector", ALL], grid[p, ratio, BEST, ALL])
        for p, ratio in product(_PARADIGMS, [x for x in ratios if x < 0.2])
        if {(p, ratio, "projector", ALL), (p, ratio, BEST, ALL)} <= grid.keys()
    ]
    if low:
        found |= _direction("projector_over_best_under_20", low, least=-_ENOUGH)
    rivals = {loss: [pair for p in _PARADIGMS for pair in pairs((p, BEST, SMALL), (p, loss, SMALL))] for loss in LOSSES}
    if all(rivals.values()):
        loss = min(rivals, key=lambda name: difference(rivals[name])[0])
        found |= _direction("sft_hidden_over_next_best", rivals[loss], least=0.0) | {"next_best_to_sft_hidden": loss}
        found |= {f"sft_hidden_over_{name.replace('-', '_')}": difference(own)[0] for name, own in rivals.items()}
    kept = {
        (p, ratio): (grid[p, ratio, BEST, SMALL], grid[p, ratio, BEST, ALL])
        for p, ratio in product(_PARADIGMS, ratios)
        if {(p, ratio, BEST, SMALL), (p, ratio, BEST, ALL)} <= grid.keys() and percent(grid[p, ratio, BEST, ALL])
    }
    if kept:
        shares = {f"{p} {ratio}": 100 * percent(few) / percent(every) for (p, ratio), (few, every) in kept.items()}
        least = min(shares, key=lambda name: shares[name])
        few, every = kept[next(key for key in kept if f"{key[0]} {key[1]}" == least)]
        ends = [100 + 100 * x / percent(every) for x in difference([(few, every)])[1]]
        found |= {
            "5_percent_keeps_least": shares[least],
            "5_percent_keeps_least_interval": ends,
            "5_percent_keeps_least_of": least,
            "5_percent_keeps_95_found": ends[0] > _KEEPS,
        }
    return found


def _direction(name: str, pairs: Sequence[tuple[Row, Row]], *, least: float, when: str = "after") -> Row:
    mean, interval = difference(pairs, when)
    return {
        name: mean,
        f"{name}_interval": interval,
        f"{name}_found": interval[0] > least,
        f"{name}_times": f"{sum(percent(a, when) - percent(b, when) > least for a, b in pairs)} of {len(pairs)}",
    }


def difference(pairs: Sequence[tuple[Row, Row]], when: str = "after") -> tuple[float, list[float]]:
    """By how many points the first of each pair is above the second, on average, with a 90% interval.

    Within a pair, of the halves of both intervals, as if they were of different answers: they are of the same ones, on
    which models err alike, so it is rather too wide. Of several pairs, the mean of their halves, which is right where
    all err by the same answers: pairs are of the same answers, too, and more of them do not make those more.
    """
    mean = sum(percent(a, when) - percent(b, when) for a, b in pairs) / len(pairs)
    half = sum(math.hypot(_half(a, when), _half(b, when)) for a, b in pairs) / len(pairs)
    return mean, [mean - half, mean + half]


def _half(row: Row, when: str) -> float:
    low, high = row["validation"][when]["percent_of_dense"]["interval"]
    return float(high - low) / 2


def _name(ratio: float) -> str:
    """0.15: 15."""
    return f"{100 * ratio:.0f}"
