"""What recovery gives back: paradigm x share removed x recovery x data, on the reference; SmolLM2 with its own answers.

Every training is `lop recover` in a process of its own, of the same number of steps, and a step that is kept: kill the
benchmark anywhere and run it again, and the training that was interrupted goes on from its last state. Validation
conversations report and decide nothing. By estimate, two cores that are not busy otherwise take four to five hours: a
step of `full` is .66 s of one core's time, the dense model's pass .015 s a conversation, a score on the selection part
2.2 s, what is around them 20 s (measured with 171 conversations and 8 steps), so a training takes 145 (5% of the data)
to 185 such seconds:

- `goal` (25 minutes): 50% of the FFN gone, a searched plan, ten minutes of training; killed and run again;
- `corners` (85 minutes): all paradigms at 15 and 60%, the projector and the best recipe, on 5% and all of the data;
- `middle` (75 minutes): the same at 30 and 45%;
- `losses` (45 minutes): the other losses, of all paradigms at 30 and 60%;
- `chosen` (40 minutes): the plan chosen for after recovery against the one chosen for before, at 45 and 60%;
- `worse` (35 minutes): runs that have every reason to end badly; the control with random weights;
- `smollm2` (60 minutes).
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from safetensors import safe_open

from benchmarks.machine import RESULTS_DIR, write_results
from benchmarks.recovery_chosen import chosen
from benchmarks.recovery_figures import figures
from benchmarks.recovery_models import (
    CALIBRATION,
    MODEL,
    NUM_TRAINING,
    PARADIGMS,
    RATIOS,
    VALIDATION,
    first_of,
    ratio_models,
    registered,
    searched_ffn_model,
    training_data,
    with_random_weights,
    with_wrong_answers,
)
from benchmarks.recovery_picture import draw_recovery_table
from benchmarks.recovery_smollm2 import recovered_smollm2
from benchmarks.steps import Steps, alone_in, say
from pruning.checkpoints.headers import weights_sha256
from recovery.state import STATE_NAME

WORK = Path(__file__).parent / ".work" / "recovery"
STEPS = 150
SMALL, ALL = 0.05, 1.0
BEST = "sft+kd-hidden"
LOSSES = ("sft", "kd-logits", "kd-hidden")
_TRIAL_CONVERSATIONS = 16
_KILLED_STEPS = 40
_SAVING_OFTEN = """
import recovery.training
from lop.cli import main
recovery.training.STATE_SECONDS = 0.5
main()
"""
_CODE = ("lop.commands.recover",)

Row = dict[str, Any]


class Bench:
    """Runs trainings and keeps their rows."""

    def __init__(self, work: Path, lock: int, num_steps: int) -> None:
        self.work, self.num_steps = work, num_steps
        self.steps = Steps(work / "steps", lock=lock)
        self.rows: list[Row] = []
        self._data: Path | None = None

    @property
    def share(self) -> float:
        """Of the minutes of a run that counts: less in a trial."""
        return self.num_steps / STEPS

    @property
    def data(self) -> Path:
        """All that there is to train on."""
        self._data = self._data or training_data(self.work / "data", round(NUM_TRAINING * self.share))
        return self._data

    @property
    def selection(self) -> Path:
        """The conversations that decide."""
        return self._judged_on(CALIBRATION)

    @property
    def validation(self) -> Path:
        """Those that only report."""
        return self._judged_on(VALIDATION)

    def register(self) -> tuple[str, ...]:
        """Words of commands that name the database, in which the reference is registered."""
        return registered(self.work, self.steps, self.selection)

    def _judged_on(self, source: Path) -> Path:
        return source if self.share == 1 else first_of(source, _TRIAL_CONVERSATIONS, self.work / source.name)

    def recover(
        self,
        name: str,
        pruned: Path,
        *options: str,
        data: Path | None = None,
        facts: Row | None = None,
        keep: bool = False,
    ) -> Row:
        """One training; its row, with `facts`. The folder is removed unless it is to be kept."""
        out = self.work / f"recovered-{name}"
        command = ["recover", str(pruned), "--teacher", str(MODEL), "--data", str(data or self.data)]
        command += [
            "--selection",
            str(self.selection),
            "--validation",
            str(self.validation),
            "--out",
            str(out),
            *options,
        ]
        document = self.steps.lop(f"recover {name}", *command, makes=out).document
        if not keep and out.exists():
            shutil.rmtree(out)
        row = {"name": name, **(facts or {}), **_short(document)}
        self.rows.append(row)
        return row


def _short(report: Row) -> Row:
    """Of a report what the result keeps."""
    kept = ("written", "best_step", "steps", "stopped", "training_seconds", "trained_tokens", "peak_memory_bytes")
    parts = {part: report[part] for part in ("selection", "validation")}
    recipe = {name: report["recipe"][name] for name in ("mode", "losses", "learning_rate", "fraction")}
    return {**{name: report[name] for name in kept}, **recipe, **parts}


def corners(bench: Bench, ratios: tuple[float, ...]) -> None:
    """No recovery (what every report says of before), reconstruction, projector, and the best recipe on both shares."""
    models = ratio_models(bench.work, bench.steps, ratios, bench.selection, bench.share)
    for ratio in ratios:
        for paradigm in PARADIGMS:
            facts = {"paradigm": paradigm, "ratio": ratio}
            pruned = models[paradigm, ratio]
            solved = pruned.with_name(f"{pruned.name}-reconstructed")
            for recovery, folder, mode, data in (
                ("projector", pruned, "projector", SMALL),
                ("projector", pruned, "projector", ALL),
                (BEST, pruned, "full", SMALL),
                (BEST, pruned, "full", ALL),
                ("reconstruction", solved, "full", SMALL),
            ):
                # Of the reconstructed model, what counts is the start; one step is the least that can be asked for.
                steps = 1 if recovery == "reconstruction" else bench.num_steps
                options = ("--mode", mode, "--fraction", str(data), "--steps", str(steps), "--loss", BEST)
                name = f"{paradigm}-{ratio}-{recovery}-{data}"
                bench.recover(name, folder, *options, facts={**facts, "recovery": recovery, "data": data})


def other_losses(bench: Bench) -> None:
    """At 30 and 60%."""
    ratios = (0.3, 0.6)
    models = ratio_models(bench.work, bench.steps, ratios, bench.selection, bench.share)
    for ratio in ratios:
        for paradigm in PARADIGMS:
            for loss in LOSSES:
                options = ("--mode", "full", "--fraction", str(SMALL), "--steps", str(bench.num_steps), "--loss", loss)
                facts = {"paradigm": paradigm, "ratio": ratio, "recovery": loss, "data": SMALL}
                bench.recover(f"{paradigm}-{ratio}-{loss}-{SMALL}", models[paradigm, ratio], *options, facts=facts)


def goal(bench: Bench) -> None:
    """Half of the FFN gone, ten minutes; then the same, shorter, killed on the way."""
    pruned = searched_ffn_model(bench.work, 0.5)
    options = ("--mode", "full", "--minutes", f"{10 * bench.share:g}")
    bench.recover("goal", pruned, *options, facts={"part": "goal"})
    for mode in ("projector", "lora", "full"):
        step = bench.steps.call(f"killed {mode}", [weights_sha256(pruned)], partial(_killed, bench, pruned, mode))
        bench.rows.append({"name": f"killed-{mode}", "part": "killed", **step.document})


def _killed(bench: Bench, pruned: Path, mode: str) -> Row:
    """Whether a run that is killed in the middle, and run again, ends with the bytes of one that is not."""
    folders = [bench.work / f"{which}-{mode}" for which in ("whole", "killed")]
    command = [sys.executable, "-c", _SAVING_OFTEN, "recover", str(pruned), "--teacher", str(MODEL), "--mode", mode]
    command += ["--data", str(bench.selection), "--steps", str(_KILLED_STEPS), "--json", "--out"]
    reports, was_killed = [], False
    for index, out in enumerate(folders):
        if out.exists():
            shutil.rmtree(out)
        if index:
            process = subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL)  # noqa: S603
            state = out.with_name(f".{out.name}.recovering") / STATE_NAME
            while process.poll() is None and _steps_in(state) < _KILLED_STEPS // 4:
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            was_killed = process.wait() == -signal.SIGKILL
        done = subprocess.run([*command, str(out)], check=True, stdout=subprocess.PIPE)  # noqa: S603
        reports.append(json.loads(done.stdout))
    files = [{p.name: p.read_bytes() for p in folder.glob("*.safetensors")} for folder in folders]
    return {
        "mode": mode,
        "was_killed": was_killed,
        "is_equal": files[0] == files[1],
        "peak_memory_bytes": reports[0]["peak_memory_bytes"],
    }


def _steps_in(state: Path) -> int:
    """That the saved state of a training has done; 0 while there is none."""
    if not state.is_file():
        return 0
    with safe_open(state, framework="pt") as file:
        return int(json.loads(file.metadata()["lop_recovery"])["step"])


def runs_that_end_badly(bench: Bench) -> None:
    """Bad rates, useless data, what is recovered already, short runs by several seeds; and the control."""
    models = ratio_models(bench.work, bench.steps, RATIOS, bench.selection, bench.share)
    wrong = with_wrong_answers(bench.selection, bench.work / "wrong.json")
    short = ("--steps", str(max(1, bench.num_steps // 3)), "--mode", "full")
    for seed in range(3):
        base = models["ours", RATIOS[seed]]
        done = bench.work / f"recovered-again-{seed}-0"
        fractions = ("--fraction", str(SMALL), "--seed", str(seed))
        bench.recover(f"again-{seed}-0", base, *short, *fractions, facts={"part": "worse"}, keep=True)
        for name, folder, options, data in (
            ("again", done, (), None),
            ("rate-100", base, ("--learning-rate", "0.15"), None),
            ("rate-10", base, ("--learning-rate", "0.015"), None),
            ("useless", base, ("--loss", "sft"), wrong),
            ("useless-kd", base, (), wrong),
            ("useless-again", done, ("--loss", "sft"), wrong),
            ("layerwise", models["layerwise", RATIOS[seed]], ("--loss", "sft"), None),
        ):
            share: tuple[str, ...] = ("--seed", str(seed)) if data is not None else fractions
            name = f"worse-{name}-{seed}"
            bench.recover(name, folder, *short, *share, *options, data=data, facts={"part": "worse"})
    for ratio in (0.3, 0.6):
        random = bench.work / f"random-{ratio}"
        make: Callable[[], Row] = partial(with_random_weights, models["ours", ratio], random)
        bench.steps.call(f"random {ratio}", [str(ratio)], make)
        whole = ("--mode", "full", "--fraction", str(SMALL), "--steps", str(bench.num_steps), "--loss", BEST)
        facts = {"part": "control", "ratio": ratio}
        bench.recover(f"control-{ratio}", random, *whole, facts=facts)


def smollm2(bench: Bench) -> None:
    """Its own answers, LoRA, 30 minutes."""
    bench.rows.append(recovered_smollm2(bench.work / "smollm2", bench.steps, bench.share))


PARTS: dict[str, Callable[[Bench], None]] = {
    "goal": goal,
    "corners": partial(corners, ratios=(0.15, 0.6)),
    "chosen": chosen,
    "worse": runs_that_end_badly,
    "smollm2": smollm2,
    "middle": partial(corners, ratios=(0.3, 0.45)),
    "losses": other_losses,
}


def main(
    parts: Annotated[list[str] | None, typer.Option("--part", help=f"{', '.join(PARTS)}; default: all.")] = None,
    num_steps: Annotated[int, typer.Option(min=1, help="Of each training; fewer are a trial.")] = STEPS,
    results: Annotated[str, typer.Option(help="Name of the files in benchmarks/results.")] = "recovery",
) -> None:
    """Write results/recovery.json and .png, of the parts asked for and of those that are finished already."""
    if unknown := set(parts or ()) - set(PARTS):
        raise typer.BadParameter(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    work = WORK if num_steps == STEPS else WORK.with_name(f"recovery-{num_steps}")
    with alone_in(work) as lock:
        bench = Bench(work, lock, num_steps)
        for name, part in PARTS.items():
            is_finished = work / f"{name}.finished"
            if parts and name not in parts and not is_finished.is_file():
                continue
            started = time.perf_counter()
            part(bench)  # of a part that is finished, all steps are read
            is_finished.touch()
            say(f"part {name}: {time.perf_counter() - started:.0f} s")
        earlier = [step.code for step in bench.steps.finished.values()]
    summary = figures(bench.rows)
    path = write_results(results, summary, bench.rows, runs=_CODE, earlier=earlier)
    draw_recovery_table(bench.rows, RESULTS_DIR / f"{results}.png")
    print(json.dumps({**summary, "results": str(path)}))  # noqa: T201


if __name__ == "__main__":
    typer.run(main)
