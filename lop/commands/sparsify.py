"""`lop sparsify`: set single weights of a checkpoint to zero."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from lop.commands.options import Json, Seed, conversations_of, one_of
from lop.console.console import fail, print_json, print_line, stages, warn

INTERRUPTED = 130


def sparsify(
    model: Annotated[Path, typer.Argument(help="The checkpoint's folder, dense or cut by `lop apply`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the sparsified checkpoint.")],
    data: Annotated[Path, typer.Option("--data", "-d", help="Calibration conversations, LLaVA-format JSON.")],
    sparsity: Annotated[
        float | None, typer.Option("--sparsity", "-s", help="Share of the projections' weights that becomes zero.")
    ] = None,
    pattern: Annotated[
        str | None, typer.Option(help="N:M, such as 2:4: N of every M inputs in a row stay. Instead of --sparsity.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="wanda, or sparsegpt, with which the weights that stay make up for the others.")
    ] = "sparsegpt",
    ratios: Annotated[str, typer.Option(help="How sparse each layer becomes: uniform, ecoflap or owl.")] = "uniform",
    score_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="ECoFLaP scores layers on the first N answer tokens of each conversation. Default: 32; its paper's "
            "samples are captions.",
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", "-p", help="Plan file that says the density of each sub-layer. Instead of --sparsity."),
    ] = None,
    inputs: Annotated[
        str,
        typer.Option(
            help="What a layer's weights are chosen by: inputs through the layers before as they are written "
            "(rewritten), or the dense model's (dense), by which `lop search --space density` scores them."
        ),
    ] = "rewritten",
    modules: Annotated[str, typer.Option(help="Whose layers: language, vision or all.")] = "language",
    conversations: Annotated[int | None, typer.Option(min=1, help="Use only the first N conversations.")] = None,
    seed: Seed = 0,
    base_model: Annotated[
        str | None,
        typer.Option(help="The dense model's id on the hub, for the model card. Default: what its folder says."),
    ] = None,
    json: Json = False,
) -> None:
    """Set single weights to zero, by Wanda or SparseGPT, with uniform, ECoFLaP's, OWL's or a plan's ratios, or in a
    pattern.

    Zeroed, not removed: shapes, bytes and speed stay those of the checkpoint, and the result loads wherever that does.
    To make a model smaller, cut units first (`lop apply`), and bits after (`lop quantise`, which keeps zeros).

    One layer is in memory at a time; with --ratios ecoflap, the whole model in float32 while layers are scored. The
    output folder is complete or absent; interrupted or killed, the same command goes on.
    """
    from lop.workflows.compute import warn_of_adapter
    from lop.workflows.sparsifying import Ratios, asked_sparsity, planned_sparsity, warnings_of
    from lop.workflows.sparsifying import sparsify as run
    from pruning.cutting.rewriting.sparsifier import LocalStep, StepInputs
    from pruning.cutting.rewriting.sparsify_checkpoint import Modules
    from pruning.cutting.streaming.solved import solved_folder
    from pruning.errors import InputError
    from pruning.planning.plan import PruningPlan

    if sparsity is not None and not 0.0 <= sparsity < 1.0:
        raise InputError("a sparsity is at least 0 and below 1", values=f"{sparsity:g}")
    step, own_ratios = one_of(LocalStep, method, "--method"), one_of(Ratios, ratios, "--ratios")
    own_modules, own_inputs = one_of(Modules, modules, "--modules"), one_of(StepInputs, inputs, "--inputs")
    densities = None
    if plan is None:
        asked = asked_sparsity(
            step,
            density=None if sparsity is None else 1.0 - sparsity,
            pattern=pattern,
            ratios=own_ratios,
            modules=own_modules,
            seed=seed,
            scored_tokens=score_tokens,
            inputs=own_inputs,
        )
    else:
        given = {
            "--sparsity": sparsity is not None,
            "--pattern": pattern is not None,
            "--ratios": own_ratios is not Ratios.UNIFORM,
            "--score-tokens": score_tokens is not None,
            "--modules": own_modules is not Modules.LANGUAGE,
        }
        if any(given.values()):
            raise InputError(
                "a plan says alone how dense each sub-layer of the decoder becomes",
                values=f"--plan {plan} and " + ", ".join(name for name, is_given in given.items() if is_given),
                remedy="Give --plan without them",
            )
        asked, densities = planned_sparsity(model, PruningPlan.load(plan), step, own_inputs)
    warn_of_adapter(model)
    loaded = conversations_of(data, conversations)
    try:
        with stages() as stage:
            report = run(
                model,
                out,
                asked,
                loaded,
                densities=densities,
                base_model=base_model,
                on_score=stage("scoring layers"),
                on_batch=stage("sparsifying"),
                on_bytes=stage("writing"),
            )
    except KeyboardInterrupt:
        if not solved_folder(out).is_dir():
            raise
        fail(f"interrupted; what is finished is in {solved_folder(out)}: run the same command to go on, or remove it")
        sys.exit(INTERRUPTED)
    for warning in warnings_of(report.notes):
        warn(warning)
    found = report.document
    if json:
        print_json({"out": str(out), **found, "density": report.density})
        return
    print_line(
        f"wrote {out}: {found['zeroed']:,} of {found['parameters']:,} weights ({1 - report.density:.2%}) are zero. "
        f"Zeroed, not removed: its files, memory and speed are those of {model}"
    )
