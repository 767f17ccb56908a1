"""The summary of the recovery benchmark, of made-up rows."""

from typing import Any

import pytest

from benchmarks.recovery_figures import ALL, BARS, BEST, SMALL, difference, figures

Row = dict[str, Any]


def row(before: float, after: float, **facts: Any) -> Row:
    def share(percent: float) -> Row:
        return {"percent_of_dense": {"percent": percent, "interval": [percent - 1, percent + 1]}}

    change = [after - before - 1, after - before + 1]
    judged: Row = {"before": share(before), "after": share(after) | {"accuracy": after / 100}}
    judged |= {"accuracy_change": change, "kl_change": [-x for x in reversed(change)]}
    row = {"name": facts.get("name", ""), "written": "recovered", "training_seconds": 120, "validation": judged}
    return row | facts


def cell(paradigm: str, ratio: float, recovery: str, data: float, after: float, before: float = 50) -> Row:
    return row(before, after, paradigm=paradigm, ratio=ratio, recovery=recovery, data=data, removed=ratio + 0.01)


def test_what_has_a_bar_is_a_number_of_its_own() -> None:
    table = [
        cell("ours", 0.15, BEST, ALL, 99.5),
        cell("ours", 0.15, BEST, SMALL, 97),
        cell("widthwise", 0.15, BEST, ALL, 98),
        cell("layerwise", 0.15, BEST, ALL, 90),
    ]
    killed = [{"part": "killed", "mode": "full", "is_equal": True, "proves": True, "peak_memory_bytes": 7}]
    others = [
        row(86, 96, part="goal", plan="lop"),
        row(87, 97, part="goal", plan="searched", training_seconds=180),
        row(0, 60, part="control", ratio=0.15),
        {"part": "smollm2", "start": "cut", "kl_before": 0.8, "kl_after": 0.2, "training_seconds": 1200},
        {"part": "smollm2", "start": "reconstructed", "kl_before": 0.6, "kl_after": 0.1, "training_seconds": 900},
    ]
    chosen = [
        row(50, after, part="chosen", ratio=0.6, chosen_for=which, best_before_is_best_after=False)
        for which, after in (("before", 80), ("after", 84))
    ]
    found = figures([*table, *killed, *others, *chosen])
    assert found["reference_percent_of_dense"] == 96
    assert (found["reference_percent_interval"], found["reference_training_minutes"]) == ([95, 97], 2)
    assert (found["reference_percent_of_dense_searched"], found["reference_training_minutes_searched"]) == (97, 3)
    assert (found["at_15"], found["at_15_bar"], found["at_15_over_paradigms"]) == (99.5, 99.0, 1.5)
    assert found["at_15_over_paradigms_interval"] == pytest.approx([1.5 - 2**0.5, 1.5 + 2**0.5])
    removed = [found[f"at_15_removed_{paradigm}"] for paradigm in ("layerwise", "widthwise", "ours")]
    assert removed == [0.16, 0.16, 0.16]
    assert "at_30" not in found
    assert "at_15_30_45_60" not in found
    assert found["chosen_after_vs_before_60"] == pytest.approx(1.05)
    assert found["chosen_after_vs_before_60_interval"] == pytest.approx([1.05 - 2**0.5 / 80, 1.05 + 2**0.5 / 80])
    assert found["best_before_is_best_after_60"] is False
    assert "chosen_after_vs_before" not in found
    assert (found["control_random_15"], found["control_pruned_15"]) == (60, 97)
    assert (found["smollm2_kl_ratio"], found["smollm2_training_minutes"]) == (0.25, 20)
    assert found["smollm2_reconstructed_kl_ratio"] == 0.125  # to the model as it was cut, whatever came after
    assert (found["killed_ends_equal"], found["peak_memory_bytes_full"]) == (True, 7)
    assert found["holds"] == {
        "reference_percent_of_dense_at_least_95": True,
        "reference_training_minutes_at_most_10": True,
        "smollm2_kl_ratio_at_most_0.5": True,
        "smollm2_reconstructed_kl_ratio_at_most_0.5": True,
        "smollm2_training_minutes_at_most_30": True,
        "killed_ends_equal": True,
    }


def test_over_all_ratios_the_least_margin_counts() -> None:
    table = [
        cell(paradigm, ratio, BEST, ALL, bar + above)
        for ratio, bar in BARS.items()
        for paradigm, above in (("layerwise", -3), ("widthwise", -1), ("ours", 0.25 if ratio < 0.5 else 1.5))
    ]
    chosen = [
        row(50, after, part="chosen", ratio=ratio, chosen_for=which, best_before_is_best_after=False)
        for ratio, which, after in ((0.45, "before", 80), (0.45, "after", 76), (0.6, "before", 50), (0.6, "after", 60))
    ]
    found = figures([*table, *chosen])
    assert (found["at_15_30_45_60"], found["at_15_30_45_60_over_paradigms"]) == (0.25, 1.25)
    assert found["chosen_after_vs_before"] == pytest.approx(0.95)
    assert found["holds"] == {
        "at_15_30_45_60_at_least_0": True,
        "at_15_30_45_60_over_paradigms_at_least_0": True,
        "chosen_after_vs_before_at_least_1": False,
    }
    assert "at_15_30_45_60_over_paradigms" not in figures([x for x in table if x["paradigm"] != "layerwise"])


def test_runs_that_are_worse_are_counted_by_answers_and_by_kl() -> None:
    farther, fewer = row(90, 90, part="worse", name="farther"), row(90, 90, part="worse", name="fewer")
    farther["validation"]["kl_change"] = [0.1, 0.3]
    fewer["validation"]["accuracy_change"] = [-0.3, -0.1]
    runs = [
        row(90, 89.5, part="worse", name="noise"),
        row(90, 80, part="worse", name="bad"),
        farther,
        fewer,
        cell("ours", 0.15, BEST, ALL, 40) | {"name": "cell"},
    ]
    found = figures(runs)
    assert (found["runs"], found["runs_worse"], found["worse"]) == (4, 3, ["bad", "farther", "fewer"])
    assert (found["runs_with_fewer_exact_answers"], found["runs_farther_from_dense"]) == (2, 2)
    assert (found["all_runs"], found["all_runs_worse"]) == (5, 4)
    assert found["all_worse"] == ["bad", "cell", "farther", "fewer"]
    assert found["holds"] == {"runs_at_least_20": False, "runs_worse_at_most_0": False}


def test_directions_count_when_they_are_beyond_the_noise() -> None:
    rows = [
        cell("widthwise", 0.6, BEST, SMALL, 90, before=10),
        cell("layerwise", 0.6, BEST, SMALL, 80, before=20),
        cell("widthwise", 0.6, BEST, ALL, 92),
        cell("widthwise", 0.15, "projector", ALL, 98.5),
        cell("widthwise", 0.15, BEST, ALL, 99),
        *(cell("widthwise", 0.6, loss, SMALL, x) for loss, x in (("sft", 85), ("kd-logits", 89.5), ("kd-hidden", 70))),
    ]
    found = figures(rows)
    assert (found["widthwise_over_layerwise_5_percent"], found["widthwise_over_layerwise_5_percent_found"]) == (
        10,
        True,
    )
    assert found["widthwise_over_layerwise_untrained_found"] is False
    assert found["projector_over_best_under_20"] == -0.5
    assert found["projector_over_best_under_20_found"] is False  # -.5 - 1.4 is more than a point behind
    assert (found["sft_hidden_over_next_best"], found["next_best_to_sft_hidden"]) == (0.5, "kd-logits")
    assert (found["sft_hidden_over_next_best_found"], found["sft_hidden_over_kd_hidden"]) == (False, 20)
    assert found["5_percent_keeps_least"] == pytest.approx(100 * 90 / 92)
    assert (found["5_percent_keeps_least_of"], found["5_percent_keeps_95_found"]) == ("widthwise 0.6", True)
    rows[0] = cell("widthwise", 0.6, BEST, SMALL, 88.5, before=10)  # 96.2 +- 1.5 percent of 92
    found = figures(rows)
    assert found["5_percent_keeps_least"] > 95
    assert found["5_percent_keeps_95_found"] is False


def test_more_pairs_on_the_same_answers_do_not_narrow_an_interval() -> None:
    pairs = [(row(0, 3), row(0, 1)), (row(0, 5), row(0, 1))]
    mean, interval = difference(pairs)
    assert mean == 3
    assert interval == pytest.approx([3 - 2**0.5, 3 + 2**0.5])


def test_cuts_of_very_different_shares_do_not_say_which_way_of_cutting_is_better() -> None:
    rows = [
        cell("widthwise", 0.15, BEST, SMALL, 80),
        cell("layerwise", 0.15, BEST, SMALL, 90) | {"removed": 0.08},
        cell("widthwise", 0.3, BEST, SMALL, 88),
        cell("layerwise", 0.3, BEST, SMALL, 80) | {"removed": 0.25},
    ]
    found = figures(rows)
    assert (found["widthwise_over_layerwise_5_percent"], found["widthwise_over_layerwise_5_percent_times"]) == (
        8,
        "1 of 1",
    )
    assert [found[f"widthwise_over_layerwise_5_percent_{ratio}"] for ratio in (15, 30)] == [-10, 8]
    assert found["widthwise_over_layerwise_5_percent_15_removed"] == {"widthwise": 0.16, "layerwise": 0.08}
    assert "widthwise_over_layerwise_5_percent" not in figures(rows[:2])


def test_reconstruction_is_the_start_of_its_row() -> None:
    found = figures([cell("layerwise", 0.3, "reconstruction", SMALL, 70, before=60)])
    assert (found["reconstruction_layerwise_30"], found["reconstruction_layerwise_30_interval"]) == (60, [59, 61])


def test_a_run_that_was_over_before_it_was_killed_proves_nothing() -> None:
    over = {"part": "killed", "mode": "lora", "is_equal": True, "proves": False, "peak_memory_bytes": 1}
    assert figures([over])["killed_ends_equal"] is False
