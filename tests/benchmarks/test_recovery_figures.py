"""The summary of the recovery benchmark, of made-up rows."""

from typing import Any

import pytest

from benchmarks.recovery_figures import ALL, BEST, SMALL, figures

Row = dict[str, Any]


def row(before: float, after: float, **facts: Any) -> Row:
    def share(percent: float) -> Row:
        return {"percent_of_dense": {"percent": percent, "interval": [percent - 1, percent + 1]}}

    change = [after - before - 1, after - before + 1]
    judged = {"before": share(before), "after": share(after) | {"accuracy": after / 100}, "accuracy_change": change}
    return {"name": facts.get("name", ""), "written": "recovered", "validation": judged, **facts}


def cell(paradigm: str, ratio: float, recovery: str, data: float, after: float) -> Row:
    return row(50, after, paradigm=paradigm, ratio=ratio, recovery=recovery, data=data)


def test_every_figure_of_the_issue_is_in_the_summary() -> None:
    table = [
        cell("ours", 0.15, BEST, ALL, 99.5),
        cell("ours", 0.15, BEST, SMALL, 97),
        cell("ours", 0.15, "sft", SMALL, 98),
        cell("widthwise", 0.15, BEST, ALL, 98),
        cell("widthwise", 0.15, BEST, SMALL, 90),
        cell("layerwise", 0.15, BEST, SMALL, 80),
    ]
    worse = [row(90, 89.5, part="worse", name="noise"), row(90, 80, part="worse", name="bad")]
    killed = [{"part": "killed", "mode": "full", "is_equal": True, "was_killed": True, "peak_memory_bytes": 7}]
    others = [
        row(86, 96, part="goal"),
        row(0, 60, part="control", ratio=0.15),
        {"part": "smollm2", "kl_before": 0.8, "kl_after": 0.2},
    ]
    chosen = [
        row(50, after, part="chosen", ratio=0.6, chosen_for=which, best_before_is_best_after=False)
        for which, after in (("before", 80), ("after", 84))
    ]
    found = figures([*table, *worse, *killed, *others, *chosen])
    assert found["chosen_after_vs_before"] == {"0.6": pytest.approx(1.05)}
    assert found["best_before_is_best_after"] == {"0.6": False}
    assert found["reference_percent_of_dense"] == 96
    assert found["reference_percent_interval"] == [95, 97]
    assert found["at_15_30_45_60"] == {"0.15": 99.5}
    assert found["at_15_30_45_60_of_paradigms"] == {"0.15": {"ours": 99.5, "widthwise": 98}}
    assert (found["runs"], found["runs_worse"], found["worse"]) == (2, 1, ["bad"])
    assert found["control"] == {"0.15": {"random": 60, "before": 0, "pruned": 97}}
    assert found["smollm2_kl_ratio"] == 0.25
    assert (found["killed_ends_equal"], found["peak_memory_bytes"]) == (True, {"full": 7})
    directions = found["directions"]
    assert directions["widthwise_beats_layerwise_with_5_percent"]["found"] is True
    assert directions["sft_and_hidden_is_best"]["sft"]["found"] is False
    assert directions["sft_and_hidden_is_best"]["kd-logits"]["found"] is None
    kept = directions["5_percent_keeps_95_percent_of_all"]
    assert (kept["found"], kept["kept"]["widthwise 0.15"]) == (False, 90 / 98)


def test_a_run_that_was_over_before_it_was_killed_proves_nothing() -> None:
    over = {"part": "killed", "mode": "lora", "is_equal": True, "was_killed": False, "peak_memory_bytes": 1}
    assert figures([over])["killed_ends_equal"] is False
