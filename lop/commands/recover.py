"""`lop recover`: train a cut checkpoint until it is nearly what it was."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lop.commands.options import Json
from lop.commands.recovery_options import RecoveryOptions, with_recovery_options
from lop.console.console import fail, print_json, print_line, print_table, warn

if TYPE_CHECKING:
    from recovery.processes import Processes
    from recovery.recipe import Recipe
    from recovery.recover import Data

INTERRUPTED = 130


@with_recovery_options
def recover(
    pruned: Annotated[Path, typer.Argument(help="The pruned checkpoint's folder, from `lop apply`.")],
    teacher: Annotated[Path, typer.Option("--teacher", help="The dense checkpoint that it was cut from.")],
    data: Annotated[
        Path,
        typer.Option("--data", "-d", help="Conversations to train on, LLaVA-format JSON, or from `lop data answer`."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the recovered checkpoint.")],
    how: RecoveryOptions,
    json: Json = False,
) -> None:
    """Train a pruned checkpoint with its dense model as the teacher. What is written is never worse than its start.

    The selection part decides, by KL to the dense model and exact answers; if nothing beats the start there, the start
    is written, and the report (`lop_recovery.json` in the folder) says so. Fewer than five answers decide nothing;
    give twenty or more. Killed, the same command goes on from the last state, which is saved by the first step that
    ends two minutes after the one before: lost are the steps and evaluations since then.

    Started by `accelerate launch` or `torchrun`, its processes train together, on several GPUs or machines.
    """
    from lop.workflows.recovering import launched_processes

    with launched_processes() as processes:
        recipe, parts = processes.together(lambda: _read(pruned, teacher, data, how, quiet=not processes.is_main))
        report = train(pruned, teacher, parts, recipe, out, how, processes)
        if not processes.is_main:
            return
    draw(report, how)
    if json:
        print_json({"out": str(out), **report})
    else:
        show_recovery(out, report)


def _read(pruned: Path, teacher: Path, data: Path, how: RecoveryOptions, *, quiet: bool) -> "tuple[Recipe, Data]":
    from lop.workflows.compute import warn_of_adapter
    from lop.workflows.recovering import planned_recipe
    from pruning.checkpoints.loading import PLAN_NAME
    from pruning.planning.plan import PruningPlan

    def note(text: str) -> None:
        if not quiet:
            warn(text)

    plan = PruningPlan.load(pruned / PLAN_NAME) if (pruned / PLAN_NAME).is_file() else None
    recipe = planned_recipe(plan, how.recipe(), on_note=note)
    if not quiet:
        for folder in (pruned, teacher):
            warn_of_adapter(folder)
    return recipe, how.parts(data, recipe, on_note=note)


def train(
    pruned: Path,
    teacher: Path,
    parts: "Data",
    recipe: "Recipe",
    out: Path,
    how: RecoveryOptions,
    processes: "Processes | None" = None,
) -> dict[str, Any]:
    """The report of a training that is shown as it goes, by the main process alone.

    Interrupted, it says where to go on, and exits.
    """
    from lop.console.recovery_progress import recovery_progress, silent
    from lop.workflows.recovering import recover_folder
    from recovery.processes import ALONE
    from recovery.recover import state_folder

    together = processes or ALONE
    watched = recovery_progress() if together.is_main else silent(together.number)
    try:
        with watched as ears:
            report = recover_folder(
                pruned, teacher, parts, recipe, out, cache_bytes=how.cache_bytes, ears=ears, processes=together
            )
    except KeyboardInterrupt:
        folder = state_folder(out)
        if not (together.is_main and folder.is_dir()):
            raise
        fail(f"interrupted; the training is in {folder}: run the same command to go on, or remove it")
        sys.exit(INTERRUPTED)
    return report


def draw(report: dict[str, Any], how: RecoveryOptions) -> None:
    """The report's curves, if they were asked for."""
    if how.plot is not None:
        from lop.console.recovery_picture import draw_recovery

        draw_recovery(report, how.plot)


def show_recovery(out: Path, report: dict[str, Any]) -> None:
    """Tables on stdout: scores, by part and kind of question, and what was written."""
    parts = [name for name in ("selection", "validation") if name in report]
    rows = []
    for name in parts:
        for when in ("dense", "before", "after"):
            found = report[name][when]
            share = found.get("percent_of_dense")
            shown = (
                ""
                if share is None
                else f"{share['percent']:.1f} ({share['interval'][0]:.1f}-{share['interval'][1]:.1f})"
            )
            rows.append([name, when, found["kl"], found["accuracy"], found["agreement"], shown])
    print_table(str(out), ["part", "model", "KL", "exact", "agreement", "% of dense (90%)"], rows)
    kinds = report[parts[-1]].get("by_kind", {})
    if kinds:
        print_table(
            f"% of dense by kind of question, {parts[-1]}",
            ["kind", "answers", "before", "after"],
            [[k, x["answers"], x["before"]["percent"], x["after"]["percent"]] for k, x in kinds.items()],
        )
    what = "the recovered model" if report["written"] == "recovered" else "the START, unchanged"
    print_line(f"wrote {what} to {out}: {report['why']}")
    if report["stopped"]:
        print_line(f"training ended early, at step {report['steps']} of {report['of_steps']}: {report['stopped']}")
