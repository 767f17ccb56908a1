"""`lop apply`: cut a checkpoint."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lop.commands.options import Json
from lop.console.console import bar, fail, print_json, print_line, warn

if TYPE_CHECKING:
    from pruning.planning.plan import PruningPlan
    from pruning.planning.ranking import Ranking

INTERRUPTED = 130

_SKIPS = (
    "config.json lists the skipped sub-layers as transformers records them, but its from_pretrained makes them anew, "
    "of random weights, unless lop.register_transformers() was called: call it, or load the folder with lop.load_pruned"
)


def apply(
    plan: Annotated[Path, typer.Option("--plan", "-p", help="Plan file, from `lop plan --out`.")],
    model: Annotated[Path, typer.Option("--model", "-m", help="The dense checkpoint's folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the pruned checkpoint.")],
    ranking: Annotated[
        Path | None,
        typer.Option(help="Ranking file. Default: the one beside the plan, else the plan's URL."),
    ] = None,
    max_shard_size: Annotated[
        str, typer.Option(help="Tensors in one weight file, at most; memory does not depend on it.")
    ] = "5GB",
    base_model: Annotated[
        str | None,
        typer.Option(help="The dense model's id on the hub, for the model card. Default: what its folder says."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing: compare the finished folder with what would be written.")
    ] = False,
    json: Json = False,
) -> None:
    """Apply a plan to a checkpoint: safetensors in, safetensors out, tokenizer, processor and a model card included.

    Only what is kept is read, in blocks: under half a gigabyte of memory whatever the model's size. The output folder
    is complete or absent; interrupted or killed, the same command goes on. `lop.load_pruned(folder)` loads the result.
    With --check, a folder that is there already is compared with the plan: sizes, shapes, bytes, every weight.
    """
    from rich.progress import DownloadColumn, TransferSpeedColumn

    from lop.applying import load_ranking, load_ranking_of
    from lop.console.quantities import parse_bytes
    from lop.workflows.compute import warn_of_adapter
    from pruning.cutting.prune_checkpoint import prune_checkpoint
    from pruning.cutting.streaming.draft import draft_folder
    from pruning.planning.plan import PruningPlan

    shard_bytes = parse_bytes(max_shard_size)
    document = PruningPlan.load(plan)
    kept = load_ranking_of(document, plan) if ranking is None else load_ranking(document, ranking)
    if check:
        _check(model, document, kept, out, json=json)
        return
    warn_of_adapter(model)
    warnings: list[str] = []
    try:
        with bar("writing", DownloadColumn(), TransferSpeedColumn()) as on_bytes:
            prune_checkpoint(
                model,
                document,
                kept,
                out,
                max_shard_size=shard_bytes,
                base_model=base_model,
                on_bytes=on_bytes,
                on_warning=warnings.append,
            )
    except KeyboardInterrupt:
        if not draft_folder(out).is_dir():
            raise
        fail(f"interrupted; what is finished is in {draft_folder(out)}: run the same command to go on, or remove it")
        sys.exit(INTERRUPTED)
    if document.skips:
        warnings.append(_SKIPS)
    for warning in warnings:
        warn(warning)
    files = list(out.glob("*.safetensors"))
    weights = sum(path.stat().st_size for path in files)
    parameters = document.achieved.parameters
    if json:
        print_json({"out": str(out), "weights_bytes": weights, "weight_files": len(files), "parameters": parameters})
    else:
        print_line(f"wrote {out}: {parameters:,} parameters, {weights:,} bytes of weights")


def _check(model: Path, plan: "PruningPlan", ranking: "Ranking", out: Path, *, json: bool) -> None:
    from rich.progress import DownloadColumn, TransferSpeedColumn

    from pruning.cutting.check_pruned import check_pruned

    with bar("comparing", DownloadColumn(), TransferSpeedColumn()) as on_bytes:
        found = check_pruned(model, plan, ranking, out, on_bytes=on_bytes)
    if json:
        print_json({"out": str(out), "tensors": found.num_tensors, "weights_bytes": found.weights_bytes})
    else:
        print_line(f"{out} is what plan {plan.plan_id} makes of {model}: {found.num_tensors} tensors, byte for byte")
