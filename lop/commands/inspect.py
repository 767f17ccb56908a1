"""`lop inspect`: what a checkpoint folder says of itself."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lop.commands.options import Json
from lop.console.console import print_json, print_line, print_table

if TYPE_CHECKING:
    from lop.console.kept_layers import KeptLayers
    from pruning.cutting.inspection import Inspection


def inspect(
    folder: Annotated[Path, typer.Argument(help="Checkpoint folder, pruned or dense.")],
    plot: Annotated[Path | None, typer.Option(help="Draw what each layer keeps (.png, .svg, .pdf).")] = None,
    json: Json = False,
) -> None:
    """What is left in each layer of a pruned checkpoint, what it was made from and by which plan, and what runs it.

    Config, headers and plan are read, no weights. `lop apply --check` compares the weights, too.
    """
    from pruning.cutting.inspection import inspect_checkpoint

    if plot is not None:
        from lop.console.pictures import check_picture

        check_picture(plot)
    found = inspect_checkpoint(folder)
    if plot is not None:
        from lop.console.layer_pictures import draw_plans

        draw_plans([(f"{folder.resolve().name}: {found.parameters:,} parameters", _kept(found))], plot)
    if json:
        print_json(_document(found))
    else:
        _show(folder, found)


def _show(folder: Path, found: "Inspection") -> None:
    """The layers as a table, then a line for each thing that is known."""
    print_table(
        f"{folder}: {found.model_type}, {found.family} decoder, {'pruned' if found.is_pruned else 'dense'}",
        ["layer", "FFN width", "of", "KV groups", "of"],
        [
            [
                x.index,
                _kept_in_words(x.ffn_width, x.ffn_bits),
                x.dense_ffn_width,
                _kept_in_words(x.kv_groups, x.attention_bits),
                x.dense_kv_groups,
            ]
            for x in found.layers
        ],
    )
    print_line(f"parameters {found.parameters:,}, weight files {found.weights_bytes:,} bytes")
    if found.sparsity is not None:
        said = found.sparsity
        share = said["zeroed"] / max(said["parameters"], 1)
        print_line(
            f"{said['zeroed']:,} of {said['parameters']:,} weights of projections ({share:.2%}) are zero, by "
            f"{said['step']}: zeroed, not removed"
        )
    if biased := [str(x.index) for x in found.layers if x.has_added_bias]:
        print_line(f"down projections with a bias for what they lost: layers {', '.join(biased)}")
    if found.is_pruned:
        print_line(f"made from {found.base.name}")
    print_line(f"licence: {found.base.licence or 'not named in the folder'}")
    if found.plan is not None:
        from pruning.cutting.model_card import expected_lines

        plan = found.plan
        print_line(f"plan {plan.plan_id}, method {plan.method}, ranking {plan.ranking.sha256}")
        print_line("achieved sparsity: " + ", ".join(f"{x} {share:.4f}" for x, share in plan.achieved.removed.items()))
        for line in filter(None, expected_lines(plan)):
            print_line(line)
    elif found.is_pruned:
        print_line("no plan in the folder: it was saved again since `lop apply`, and its weights may have changed")
    for runtime in found.runs_in:
        print_line(f"runs in {runtime}")
    for refusal in found.refused_by:
        print_line(f"refused by {refusal}")


def _kept_in_words(units: int, bits: int | None) -> str | int:
    return "skipped" if units == 0 else units if bits is None else f"{units}, {bits} bits"


def _kept(found: "Inspection") -> "KeptLayers":
    from lop.console.kept_layers import ATTENTION, FFN, KeptLayers

    as_they_are = [1.0] * len(found.layers)
    return KeptLayers(
        {FFN: [x.ffn_width for x in found.layers], ATTENTION: [x.kv_groups for x in found.layers]},
        {FFN: [x.dense_ffn_width for x in found.layers], ATTENTION: [x.dense_kv_groups for x in found.layers]},
        {FFN: as_they_are, ATTENTION: as_they_are},
    )


def _document(found: "Inspection") -> dict[str, Any]:
    return {
        "model_type": found.model_type,
        "family": found.family,
        "pruned": found.is_pruned,
        "base_model": found.base.name,
        "licence": found.base.licence,
        "parameters": found.parameters,
        "weights_bytes": found.weights_bytes,
        "sparsity": found.sparsity,
        "layers": [vars(layer) for layer in found.layers],
        "plan": None if found.plan is None else found.plan.model_dump(mode="json"),
        "runs_in": found.runs_in,
        "refused_by": found.refused_by,
    }
