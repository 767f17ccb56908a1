"""`lop recover`: train a cut checkpoint until it is nearly what it was."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lop.commands.options import Json, Seed
from lop.console.console import fail, print_json, print_line, print_table, warn

if TYPE_CHECKING:
    pass

INTERRUPTED = 130


def recover(
    pruned: Annotated[Path, typer.Argument(help="The pruned checkpoint's folder, from `lop apply`.")],
    teacher: Annotated[Path, typer.Option("--teacher", help="The dense checkpoint that it was cut from.")],
    data: Annotated[
        Path,
        typer.Option("--data", "-d", help="Conversations to train on, LLaVA-format JSON, or from `lop data answer`."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the recovered checkpoint.")],
    selection: Annotated[
        Path | None,
        typer.Option(help="Conversations that decide what is kept. Default: an eighth of --data, kept back."),
    ] = None,
    validation: Annotated[
        Path | None, typer.Option(help="Conversations that decide nothing: their figures are those to expect.")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(help="What is trained: projector, lora or full. Default: by the share that was removed."),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(help="A weighted sum of sft, kd-logits, kd-hidden: sft+0.5*kd-logits. Default: sft+kd-hidden."),
    ] = None,
    hidden_layer: Annotated[
        list[int] | None,
        typer.Option(help="A decoder layer, from 0, after which kd-hidden compares; repeatable. Default: the end."),
    ] = None,
    fraction: Annotated[float, typer.Option(help="Share of --data to train on; stratified.")] = 1.0,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data. Default: 1; 3 of a fraction.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps, in place of epochs.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Of training, at most. Becomes a number of steps by the speed of the first.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The highest. Default: by mode and model width.")] = None,
    rank: Annotated[int | None, typer.Option(help="Of the updates of lora.")] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(help="Tokens through the model at once, padding included.")
    ] = None,
    step_tokens: Annotated[
        int | None, typer.Option(help="Answer tokens of one optimiser step, about; gradients add up.")
    ] = None,
    checkpointed: Annotated[
        bool, typer.Option("--checkpoint-activations", help="Less memory, a third more time.")
    ] = False,
    cache_gib: Annotated[
        float, typer.Option(min=0, help="Of the dense model's states on disk, at most; beyond it is run beside.")
    ] = 16.0,
    plot: Annotated[Path | None, typer.Option(help="Draw the curves (.png, .svg, .pdf).")] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Train a pruned checkpoint with its dense model as the teacher. What is written is never worse than its start.

    The selection part decides, by KL to the dense model and exact answers; if nothing beats the start there, the start
    is written, and the report (`lop_recovery.json` in the folder) says so. Killed, the same command goes on: what is
    lost is two minutes at most.
    """
    from lop.console.recovery_progress import recovery_progress
    from lop.workflows.compute import warn_of_adapter
    from lop.workflows.recovering import recover_folder, recovery_data
    from recovery.recipe import Recipe, parse_losses
    from recovery.recover import state_folder

    if plot is not None:
        from lop.console.pictures import check_picture

        check_picture(plot)
    given: dict[str, Any] = {
        "mode": mode,
        "losses": None if loss is None else parse_losses(loss),
        "hidden_layers": tuple(hidden_layer or ()) or None,
        "epochs": epochs,
        "steps": steps,
        "minutes": minutes,
        "learning_rate": learning_rate,
        "rank": rank,
        "batch_tokens": batch_tokens,
        "step_tokens": step_tokens,
        "is_checkpointed": checkpointed,
        "fraction": fraction,
        "seed": seed,
    }
    recipe: Recipe = Recipe.of(**{name: value for name, value in given.items() if value is not None})
    for folder in (pruned, teacher):
        warn_of_adapter(folder)
    parts = recovery_data(data, selection=selection, validation=validation, recipe=recipe, on_note=warn)
    try:
        with recovery_progress() as ears:
            report = recover_folder(pruned, teacher, parts, recipe, out, cache_bytes=int(cache_gib * 2**30), ears=ears)
    except KeyboardInterrupt:
        folder = state_folder(out)
        if not folder.is_dir():
            raise
        fail(f"interrupted; the training is in {folder}: run the same command to go on, or remove it")
        sys.exit(INTERRUPTED)
    if plot is not None:
        from lop.console.recovery_picture import draw_recovery

        draw_recovery(report, plot)
    if json:
        print_json({"out": str(out), **report})
    else:
        _show(out, report)


def _show(out: Path, report: dict[str, Any]) -> None:
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
