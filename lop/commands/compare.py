"""`lop compare`: the quality of all methods against sparsity."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lop.commands.options import (
    DEFAULT_DATABASE,
    Database,
    Json,
    ModelId,
    conversations_of,
    default_targets,
    open_database,
)
from lop.console.console import bar, print_json, print_line, print_table, stderr, warn
from lop.console.quality import NO_EXACT_MATCH, quality_cells, quality_columns
from pruning.allocators.methods import Method
from pruning.anatomy.architecture import Sublayer
from pruning.measuring.metrics import exact_match_tells
from pruning.planning.axis_spaces import SpaceName
from pruning.planning.ffn_spaces import DEFAULT_ROUND_TO
from pruning.planning.scope import Scope, check_sparsity
from pruning.planning.target import usual_scope

if TYPE_CHECKING:
    from lop.console.kept_layers import KeptLayers
    from lop.workflows.comparing import Comparison
    from pruning.anatomy.anatomy import ModelAnatomy


def compare(
    model: ModelId,
    data: Annotated[
        Path,
        typer.Option("--data", "-d", help="Conversations to score on, LLaVA-format JSON: not those of the search."),
    ],
    sparsity: Annotated[
        list[float] | None,
        typer.Option(
            "--sparsity",
            "-s",
            help="Target; repeat for several. Default: 0.2 to 0.7 in tenths, in other spaces than ffn 0.15, 0.3, 0.45 "
            "and 0.6.",
        ),
    ] = None,
    scope: Annotated[
        Scope | None,
        typer.Option(
            help="What the sparsities count: ffn by default in the space of FFN widths, decoder in the others.",
            show_default=False,
        ),
    ] = None,
    space: Annotated[
        SpaceName,
        typer.Option(
            help="What the plans may change: FFN widths, KV groups (down to none), whole layers, or all of that."
        ),
    ] = SpaceName.FFN,
    method: Annotated[
        list[Method] | None,
        typer.Option(help="Repeat for several. Default: all that the space knows and the stored data allow."),
    ] = None,
    round_to: Annotated[int, typer.Option(min=1, help="Widths are multiples of this.")] = DEFAULT_ROUND_TO,
    conversations: Annotated[int | None, typer.Option(min=1, help="Use only the first N.")] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Draw the curves into this file (PNG, SVG or PDF); in other spaces than ffn also what each method "
            "keeps of every layer, at the target in the middle."
        ),
    ] = None,
    database: Database = DEFAULT_DATABASE,
    json: Json = False,
) -> None:
    """Compare methods: score each one's plan for each target on the same conversations, and draw the curves."""
    from lop.console.pictures import check_picture, draw_comparison
    from lop.workflows.comparing import compare_methods

    is_of_ffn = space is SpaceName.FFN
    sparsities = [check_sparsity(s) for s in sparsity or default_targets(space)]
    if plot is not None:
        check_picture(plot)
    with open_database(database) as repository:
        anatomy = repository.get_model(model).anatomy
        loaded = conversations_of(data, conversations)
        with bar("scoring plans") as on_plan:
            comparison = compare_methods(
                repository,
                model,
                loaded,
                sparsities,
                methods=method,
                scope=scope,
                space=space,
                round_to=round_to,
                on_plan=on_plan,
            )
    for reason in comparison.missing:
        warn(reason)
    if comparison.calibrated:
        warn(
            f"{data} is what {', '.join(comparison.calibrated)} decided from: score on conversations that no method saw"
        )
    if plot is not None:
        rows = [plan.to_dict() for plan in comparison.plans]
        kept = [] if is_of_ffn else _kept_at(sorted(sparsities)[len(sparsities) // 2], comparison, anatomy)
        draw_comparison(rows, plot, exact_match=exact_match_tells(comparison.dense), kept=kept)
        stderr().print(f"wrote {plot}", markup=False)
    if json:
        document = {"model": model, "data": str(data), "space": space, "dense": comparison.dense.to_dict()}
        print_json(document | {"plans": [plan.to_dict() for plan in comparison.plans]})
        return
    print_table(
        f"plans for {model} on {data} ({len(loaded)} conversations)",
        ["method", f"sparsity ({scope or usual_scope(space)})", "achieved", *quality_columns(comparison.dense), "note"],
        [
            [
                p.method,
                p.sparsity,
                p.achieved_sparsity,
                *quality_cells(p, comparison.dense),
                "filled up" if p.filled_up else "",
            ]
            for p in comparison.plans
        ],
    )
    if exact_match_tells(comparison.dense):
        print_line(f"exact match of the dense model: {comparison.dense.accuracy:.4g}")
    else:
        print_line(NO_EXACT_MATCH)
    if any(plan.filled_up for plan in comparison.plans):
        print_line("filled up: what was searched for another target, with channels or KV groups added up to this one")


def _kept_at(sparsity: float, comparison: "Comparison", anatomy: "ModelAnatomy") -> "list[tuple[str, KeptLayers]]":
    """What each method's plan for `sparsity` keeps."""
    from lop.console.kept_layers import KeptLayers

    dense = {sublayer: anatomy.dense_units(sublayer) for sublayer in Sublayer}
    return [
        (f"{plan.method}, {sparsity:.0%}: KL {plan.kl:.3g}", KeptLayers.of(architecture, dense))
        for plan, architecture in zip(comparison.plans, comparison.architectures, strict=True)
        if plan.sparsity == sparsity
    ]
