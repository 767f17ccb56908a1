"""The parts of the recovery benchmark: which checkpoints are trained, how, and what for."""

import json
from collections.abc import Callable
from functools import partial

from benchmarks.recovery_bench import FULL, PROJECTOR, Bench, Training, removed
from benchmarks.recovery_figures import ALL, BEST, CHOSEN_RATIOS, LOSSES, SMALL
from benchmarks.recovery_goal import planned_ffn_model, searched_ffn_model
from benchmarks.recovery_killed import MODES, killed
from benchmarks.recovery_models import (
    CALIBRATION,
    MODEL,
    PARADIGMS,
    RATIOS,
    first_of,
    reconstructed,
    registered,
    search_words,
    widthwise_model,
    with_random_weights,
    with_wrong_answers,
)
from benchmarks.recovery_smollm2 import CUT, RECONSTRUCTED, recovered_smollm2

GOAL_STEPS = 450
"""Four minutes of one core by estimate, of the ten minutes of two that are allowed."""
FINALISTS = 6
_CHOSEN_STEPS = 40
_BUDGET_MINUTES = 240
"""Of all recoveries of finalists; more than they take, since how many fit must not depend on the machine."""
_USELESS = 128


def goal(bench: Bench) -> None:
    """Half of the FFN gone, by both plans; then trainings, shorter, that are killed on the way."""
    plans = {
        "lop": planned_ffn_model(bench.work, bench.steps, 0.5),
        "searched": searched_ffn_model(bench.work, 0.5),
    }
    options = ("--mode", FULL, "--steps", str(max(1, round(GOAL_STEPS * bench.share))))
    bench.train(
        [Training(f"goal-{x}", pruned, options, facts={"part": "goal", "plan": x}) for x, pruned in plans.items()]
    )
    pruned = widthwise_model(bench.work, bench.steps, 0.6, bench.selection)
    for mode in MODES:
        run = partial(killed, pruned, CALIBRATION, mode, bench.work, bench.lock)
        runs = ("benchmarks.recovery_killed", "lop.commands.recover")
        step = bench.steps.call(f"killed {mode}", [mode], run, modules=runs)
        bench.rows.append({"name": f"killed-{mode}", "part": "killed", **step.document})


def cell(bench: Bench, paradigm: str, ratio: float, recovery: str, data: float) -> Training:
    """One of the table: `recovery` is `projector` or the loss of a full one."""
    mode, loss = (PROJECTOR, BEST) if recovery == PROJECTOR else (FULL, recovery)
    steps = str(bench.steps_of(paradigm, ratio, mode, loss))
    pruned = bench.models[paradigm, ratio]
    facts = {"paradigm": paradigm, "ratio": ratio, "removed": removed(pruned), "recovery": recovery, "data": data}
    options = ("--mode", mode, "--fraction", str(data), "--steps", steps, "--loss", loss)
    return Training(f"{paradigm}-{ratio}-{recovery}-{data}", pruned, options, facts=facts)


def corners(bench: Bench, ratios: tuple[float, ...]) -> None:
    """No recovery (what every report says of before), reconstruction, projector, and the best recipe on both shares."""
    trainings = []
    for ratio in ratios:
        for paradigm in PARADIGMS:
            trainings += [
                cell(bench, paradigm, ratio, recovery, data) for recovery in (BEST, PROJECTOR) for data in (ALL, SMALL)
            ]
            # Of the reconstructed model, what counts is the start; one step of the cheapest kind must be asked for.
            solved = reconstructed(bench.models[paradigm, ratio])
            options = ("--mode", "projector", "--fraction", str(SMALL), "--steps", "1", "--loss", "sft")
            facts = {"paradigm": paradigm, "ratio": ratio, "removed": removed(solved)}
            facts |= {"recovery": "reconstruction", "data": SMALL}
            trainings.append(Training(f"{paradigm}-{ratio}-reconstruction", solved, options, facts=facts))
    bench.train(trainings)


def other_losses(bench: Bench) -> None:
    """At 30 and 60%."""
    bench.train(
        [cell(bench, paradigm, ratio, loss, SMALL) for ratio in (0.3, 0.6) for paradigm in PARADIGMS for loss in LOSSES]
    )


def chosen(bench: Bench) -> None:
    """Whether the plan that was chosen for after recovery is better there than the one chosen for before.

    `lop search --after-recovery` recovers finalists by a short training, decided on the calibration conversations; then
    both plans get the same longer training, and are compared on validation conversations, which decided nothing. The
    plan for before is that of `ours`, and its training a cell of the table.
    """
    before = bench.train([cell(bench, "ours", ratio, BEST, ALL) for ratio in CHOSEN_RATIOS])
    place = registered(bench.work, bench.steps, bench.selection)
    # Nothing but what a cell's options say too: `lop recover` takes what else there is from the plan that it trains.
    recipe = {"mode": "full", "steps": max(1, round(_CHOSEN_STEPS * bench.share)), "losses": {"sft": 1, "kd-hidden": 1}}
    searched = bench.steps.lop(
        "search after recovery",
        *search_words(bench.selection, RATIOS, bench.share),
        *("--after-recovery", json.dumps(recipe), "--budget", str(_BUDGET_MINUTES), "--finalists", str(FINALISTS)),
        *("--recovery-data", str(bench.data), "--selection", str(bench.selection), *place),
    ).document["after_recovery"]
    targets = dict(zip(RATIOS, searched["targets"], strict=True))
    trainings = []
    for ratio in CHOSEN_RATIOS:
        plan, out = bench.work / f"chosen-{ratio}-after.json", bench.work / f"chosen-{ratio}-after"
        how = ("--method", "mcts", "--space", "all", "--sparsity", str(ratio), "--scope", "decoder", "--after-recovery")
        words = ("plan", "--model", "reference", *how, "--out", str(plan), *place)
        bench.steps.lop(f"plan {out.name}", *words, makes=plan)
        bench.steps.lop(
            f"apply {out.name}", "apply", "--plan", str(plan), "--model", str(MODEL), "--out", str(out), makes=out
        )
        options = cell(bench, "ours", ratio, BEST, ALL).options
        trainings.append(
            Training(out.name, out, options, facts={"part": "chosen", "ratio": ratio, "chosen_for": "after"})
        )
    for row in bench.train(trainings):
        target = targets[row["ratio"]]
        row["finalists_recovered"] = sum(bool(finalist["after"]) for finalist in target["finalists"])
        row["best_before_is_best_after"] = target["best_before_is_best_after"]
    for row in before:
        facts = {"name": f"chosen-{row['ratio']}-before", "part": "chosen", "chosen_for": "before"}
        bench.rows.append({x: value for x, value in row.items() if x not in ("paradigm", "recovery", "data")} | facts)


def runs_that_end_badly(bench: Bench) -> None:
    """Bad rates, useless data, what is recovered already, short runs by several seeds; and the control."""
    wrong = with_wrong_answers(first_of(bench.data, _USELESS, bench.work / "right.json"), bench.work / "wrong.json")
    short = ("--steps", str(max(1, bench.num_steps // 3)), "--mode", "full")
    facts = {"part": "worse"}
    firsts, trainings = [], []
    for seed in range(3):
        base = bench.models["ours", RATIOS[seed]]
        again = bench.work / f"recovered-again-{seed}-0"
        fraction = ("--fraction", str(SMALL), "--seed", str(seed))
        firsts.append(Training(f"again-{seed}-0", base, (*short, *fraction), facts=facts, keep=True))
        for name, folder, options, data in (
            ("again", again, (), None),
            ("rate-100", base, ("--learning-rate", "0.15"), None),
            ("rate-10", base, ("--learning-rate", "0.015"), None),
            ("useless", base, ("--loss", "sft"), wrong),
            ("useless-kd", base, (), wrong),
            ("useless-again", again, ("--loss", "sft"), wrong),
            ("layerwise", bench.models["layerwise", RATIOS[seed]], ("--loss", "sft"), None),
        ):
            share = fraction if data is None else ("--seed", str(seed))
            trainings.append(Training(f"worse-{name}-{seed}", folder, (*short, *share, *options), data, facts))
    bench.train(firsts)
    for ratio in (0.3, 0.6):
        whole = cell(bench, "ours", ratio, BEST, SMALL).options
        random = bench.work / f"random-{ratio}"
        make = partial(with_random_weights, bench.models["ours", ratio], random)
        bench.steps.call(f"random {ratio}", [str(ratio)], make, modules=("benchmarks.recovery_models",))
        trainings.append(Training(f"control-{ratio}", random, whole, facts={"part": "control", "ratio": ratio}))
    bench.train(trainings)


def smollm2(bench: Bench, *, start: str) -> None:
    """Its own answers, LoRA, 30 minutes."""
    bench.rows.append(recovered_smollm2(bench.work / "smollm2", bench.steps, start, bench.share))


PARTS: dict[str, Callable[[Bench], None]] = {
    "goal": goal,
    "corners": partial(corners, ratios=(0.15, 0.6)),
    "middle": partial(corners, ratios=(0.3, 0.45)),
    "chosen": chosen,
    "worse": runs_that_end_badly,
    "losses": other_losses,
    "smollm2": partial(smollm2, start=CUT),
    "smollm2-reconstructed": partial(smollm2, start=RECONSTRUCTED),
}
