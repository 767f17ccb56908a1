"""Whether the plan that was chosen for after recovery is better there than the one chosen for before.

`lop search --after-recovery` recovers finalists by a short training, decided on the calibration conversations; then
both plans get the same longer training, and are compared on validation conversations, which decided nothing.
"""

import json
from typing import TYPE_CHECKING

from benchmarks.recovery_figures import ALL, BEST
from benchmarks.recovery_models import MODEL, search_words

if TYPE_CHECKING:
    from benchmarks.recovery import Bench

RATIOS = (0.45, 0.6)
MINUTES = 20.0
_STEPS = 30


def chosen(bench: "Bench") -> None:
    """Two rows a ratio: the trainings of the plan for before and of the one for after."""
    place = bench.register()
    recipe = {"mode": "full", "steps": max(1, round(_STEPS * bench.share)), "losses": {"sft": 1, "kd-hidden": 1}}
    searched = bench.steps.lop(
        "search after recovery",
        *search_words(bench.selection, RATIOS, bench.share),
        *("--after-recovery", json.dumps(recipe), "--budget", f"{MINUTES * bench.share:g}"),
        *("--recovery-data", str(bench.data), "--selection", str(bench.selection), *place),
    ).document["after_recovery"]
    for ratio, target in zip(RATIOS, searched["targets"], strict=True):
        for which in ("before", "after"):
            name = f"chosen-{ratio}-{which}"
            plan, out = bench.work / f"{name}.json", bench.work / name
            how = ("--method", "mcts", "--space", "all", "--sparsity", str(ratio), "--scope", "decoder")
            asked = (*how, "--after-recovery") if which == "after" else how
            words = ("plan", "--model", "reference", *asked, "--out", str(plan), *place)
            bench.steps.lop(f"plan {name}", *words, makes=plan)
            apply = ("apply", "--plan", str(plan), "--model", str(MODEL), "--out", str(out))
            bench.steps.lop(f"apply {name}", *apply, makes=out)
            training = ("--mode", "full", "--fraction", str(ALL), "--steps", str(bench.num_steps), "--loss", BEST)
            recovered = sum(bool(finalist["after"]) for finalist in target["finalists"])
            facts = {
                "part": "chosen",
                "ratio": ratio,
                "chosen_for": which,
                "finalists_recovered": recovered,
                "best_before_is_best_after": target["best_before_is_best_after"],
            }
            bench.recover(name, out, *training, facts=facts)
