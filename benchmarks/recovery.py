"""What recovery gives back: paradigm x share removed x recovery x data, on the reference; SmolLM2 with its own answers.

Every training is `lop recover` in a process of its own and a step that is kept, of one core and a few minutes, as many
at once as there are cores (`benchmarks.recovery_bench`): kill the benchmark anywhere and run it again, and what was
interrupted goes on from its last state. Lengths are numbers of steps, equal for equal minutes (`Bench.steps_of`), so
that a machine which does something else besides finds the same. Validation conversations report and decide nothing.
Results are written after every part: `recovery.json` of all parts, `recovery-partial.json` until they are there.

By estimate, two cores that are not busy otherwise take four and a half hours. A step of `full` is .35 (60% gone) to
.55 seconds of one core, the dense model's pass .015 a conversation, a score on the selection part 2.2, what is around
them 20: a training takes 125 (5% of the data) to 165 of them, and two run at once.

- `goal` (15 minutes): 50% of the FFN gone, by the plan of a predictor that is trained first and by a searched one, at
  most ten minutes of training; killed and run again;
- `corners` (50 minutes): searching and cutting for all parts, and what their steps cost, which are fifteen of them; all
  paradigms at 15 and 60%, the projector and the best recipe, on 5% and all of the data;
- `middle` (35 minutes): the same at 30 and 45%;
- `chosen` (20 minutes): the plan chosen for after recovery against the one chosen for before, at 45 and 60%;
- `worse` (15 minutes): runs that have every reason to end badly; the control with random weights;
- `losses` (20 minutes): the other losses, of all paradigms at 30 and 60%;
- `smollm2` (65 minutes), of which answering its prompts takes some 30;
- `smollm2-reconstructed` (35 minutes): the same, of what `lop apply --reconstruct` makes of the cut.
"""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.machine import write_results
from benchmarks.recovery_bench import STEPS, Bench
from benchmarks.recovery_figures import figures
from benchmarks.recovery_parts import PARTS
from benchmarks.recovery_picture import draw_recovery_table
from benchmarks.steps import alone_in, say

WORK = Path(__file__).parent / ".work" / "recovery"
_CODE = ("lop.commands.recover",)


def main(
    parts: Annotated[list[str] | None, typer.Option("--part", help=f"{', '.join(PARTS)}; default: all.")] = None,
    num_steps: Annotated[int, typer.Option(min=1, help="Of most trainings; fewer are a trial of everything.")] = STEPS,
    results: Annotated[str, typer.Option(help="Name of the files in benchmarks/results.")] = "recovery",
) -> None:
    """Write results/recovery.json and .png: the parts asked for, and those that are finished already."""
    if unknown := set(parts or ()) - set(PARTS):
        raise typer.BadParameter(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if num_steps != STEPS and results == "recovery":
        results = f"recovery-{num_steps}"
    work = WORK if num_steps == STEPS else WORK.with_name(f"recovery-{num_steps}")
    with alone_in(work) as lock:
        bench = Bench(work, lock, num_steps)
        done: list[str] = []
        for name, part in PARTS.items():
            is_finished = work / f"{name}.finished"
            if parts and name not in parts and not is_finished.is_file():
                continue
            started = time.perf_counter()
            part(bench)  # of a part that is finished, all steps are read
            is_finished.touch()
            done.append(name)
            say(f"part {name}: {time.perf_counter() - started:.0f} s")
            # What comes after may fail for reasons of its own: a package index, say.
            path = _write(results, bench, is_whole=len(done) == len(PARTS))
    print(json.dumps({**figures(bench.rows), "results": str(path)}))  # noqa: T201


def _write(results: str, bench: Bench, *, is_whole: bool) -> Path:
    """Results and picture of what there is; once all of it is there, what was written before goes."""
    partial = f"{results}-partial"
    earlier = [step.code for step in bench.steps.finished.values()]
    name = results if is_whole else partial
    path = write_results(name, figures(bench.rows), bench.rows, runs=_CODE, earlier=earlier)
    draw_recovery_table(bench.rows, path.with_suffix(".png"))
    if is_whole:
        for suffix in (".json", ".png"):
            path.with_name(partial + suffix).unlink(missing_ok=True)
    return path


if __name__ == "__main__":
    typer.run(main)
