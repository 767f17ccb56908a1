"""`lop apply`: cut a checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from lop.commands.options import Json
from lop.console import bar, print_json, print_line


def apply(
    plan: Annotated[Path, typer.Option("--plan", "-p", help="Plan file, from `lop plan --out`.")],
    model: Annotated[Path, typer.Option("--model", "-m", help="The dense checkpoint's folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the pruned checkpoint.")],
    ranking: Annotated[
        Path | None,
        typer.Option(help="Ranking file. Default: the one beside the plan, else the plan's URL."),
    ] = None,
    json: Json = False,
) -> None:
    """Apply a plan to a checkpoint: safetensors in, safetensors out, tokenizer and processor included.

    The output folder is complete or absent; `lop.load_pruned(folder)` loads it.
    """
    from rich.progress import DownloadColumn

    from lop.applying import load_ranking, ranking_path
    from pruning.plan import PruningPlan
    from pruning.prune_checkpoint import prune_checkpoint

    document = PruningPlan.load(plan)
    beside = ranking_path(plan)
    source = ranking or (beside if beside.is_file() else None)
    with bar("writing", unit=DownloadColumn()) as on_bytes:
        prune_checkpoint(model, document, load_ranking(document, source), out, on_bytes=on_bytes)
    weights = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    if json:
        print_json({"out": str(out), "weights_bytes": weights, "parameters": document.achieved.parameters})
    else:
        print_line(f"wrote {out}: {document.achieved.parameters:,} parameters, {weights:,} bytes of weights")
