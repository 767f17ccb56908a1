"""The summary of the runtimes benchmark, from rows made by hand."""

from typing import Any

from benchmarks.runtimes import figures


def row(runtime: str, kind: str, agreement: float | None) -> dict[str, Any]:
    runs = agreement is not None
    return {"family": "f", "kind": kind, "runtime": runtime, "runs": runs, **({"agreement": agreement} if runs else {})}


def speed(runtime: str, prefill: float, decode: float) -> dict[str, Any]:
    ratios = {"prefill_pruned_over_dense": prefill, "decode_pruned_over_dense": decode}
    return {"runtime": runtime, "runs": True, **ratios}


def test_the_worst_cell_that_runs_and_the_runtime_with_the_fewest_families_count() -> None:
    rows = [row("a", "pruned", 1.0)] * 5 + [row("b", "pruned", 0.995)] * 5 + [row("b", "pruned", None)]
    rows += [row("a", "dense", 0.992)]
    found = figures(rows, [])
    assert (found["agreement_min"], found["families_run_min"]) == (0.992, 5)
    assert found["holds"] == {"agreement_min": True, "families_run_min": True}
    worse = figures([*rows, row("c", "pruned", None), row("c", "dense", 0.9)], [])
    assert (worse["agreement_min"], worse["families_run_min"]) == (0.9, 0)
    assert worse["holds"] == {"agreement_min": False, "families_run_min": False}


def test_prompt_and_answer_must_both_be_faster_in_two_runtimes_beside_ours() -> None:
    rows = [row("a", "pruned", 1.0)]
    two = [speed("lop", 2, 2), speed("a", 1.5, 1.6), speed("b", 1.9, 1.4)]
    assert not figures(rows, two)["holds"]["runtimes_1.5_times_faster"]
    assert figures(rows, [*two, speed("c", 1.6, 1.5)])["holds"]["runtimes_1.5_times_faster"]
