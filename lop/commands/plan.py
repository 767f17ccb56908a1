"""`lop plan`: request a plan."""

from pathlib import Path
from typing import Annotated

import typer

from lop.commands.options import Json, ModelId, OptionalDatabase
from lop.console import print_line, print_table, stderr
from pruning.errors import InputError
from pruning.levels import DEFAULT_ROUND_TO
from pruning.plan import PruningPlan
from pruning.target import Scope
from service.methods.names import Method


def plan(
    model: ModelId,
    sparsity: Annotated[float, typer.Option("--sparsity", "-s", help="Fraction of the scope to remove, in [0, 1).")],
    scope: Annotated[Scope, typer.Option(help="What the sparsity counts.")] = Scope.FFN,
    device: Annotated[str | None, typer.Option(help="Target device, see GET /v1/devices.")] = None,
    round_to: Annotated[int, typer.Option(help="Widths are multiples of this.")] = DEFAULT_ROUND_TO,
    method: Annotated[
        Method | None,
        typer.Option(
            help="How widths are chosen. Default: the best that the stored data allows of lop, mcts (a search finished "
            "within one level step of the target), additive-dp and uniform. wanda-sp, flap, llm-pruner, owl, ecoflap "
            "and shortgpt need `lop model measure`; mcts, evolution and random a finished `lop search --method` near "
            "the target."
        ),
    ] = None,
    url: Annotated[str | None, typer.Option(envvar="LOP_URL", help="Server to ask.", show_envvar=True)] = None,
    database: OptionalDatabase = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the plan here, its ranking beside it.")] = None,
    json: Json = False,
) -> None:
    """Get the per-layer plan for a target: from a server (--url), or from the database without one (--database)."""
    from lop.planning import plan_from_database, plan_from_server

    if url is not None and database is not None:
        raise InputError("a plan comes from a server or from a database", values=f"--url {url} and --database")
    if url is not None:
        found, ranking = plan_from_server(
            url,
            with_ranking=out is not None,
            model=model,
            sparsity=sparsity,
            scope=scope,
            device=device,
            round_to=round_to,
            method=method,
        )
    else:
        found, ranking = plan_from_database(
            database, model=model, sparsity=sparsity, scope=scope, device=device, round_to=round_to, method=method
        )
    if out is not None:
        from lop.planning import write_plan

        write_plan(found, ranking, out)
        stderr().print(f"wrote {out}", markup=False)
    if json:
        print_line(found.model_dump_json())
    elif out is None or typer.get_text_stream("stdout").isatty():
        show(found)


def show(plan: PruningPlan) -> None:
    """The plan as a table."""
    achieved = plan.achieved
    print_table(
        f"plan {plan.plan_id} for {plan.model.id}, method {plan.method}",
        ["layer", "FFN width", "KV groups", "heads"],
        [[x.index, x.ffn_width, x.num_kv_groups, x.num_heads] for x in plan.layers],
    )
    sparsities = ", ".join(f"{scope} {value:.4f}" for scope, value in achieved.sparsity.items())
    print_line(f"achieved sparsity: {sparsities}")
    print_line(f"parameters {achieved.parameters:,}, on disk {achieved.disk_bytes:,} bytes")
    if plan.predicted is not None:
        # Searched methods say in the note what theirs was measured on.
        where = " (calibration data)" if plan.method == Method.LOP else ""
        print_line(f"predicted KL to dense: {plan.predicted.quality:.4f}{where}")
    if plan.provenance.note:
        print_line(f"note: {plan.provenance.note}")
