"""`lop plan`: request a plan."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lop.commands.options import Json, ModelId, OptionalDatabase
from lop.console.console import print_json, print_line, print_table, stderr
from lop.console.quantities import parse_bytes, parse_milliseconds, parse_operations
from pruning.allocators.methods import Method, describe_methods
from pruning.errors import InputError
from pruning.planning.axis_spaces import SpaceName
from pruning.planning.ffn_spaces import DEFAULT_ROUND_TO
from pruning.planning.plan import Kept, PruningPlan
from pruning.planning.scope import Scope


def plan(
    model: ModelId,
    sparsity: Annotated[
        float | None, typer.Option("--sparsity", "-s", help="Fraction of the scope to remove, in [0, 1).")
    ] = None,
    scope: Annotated[
        Scope | None,
        typer.Option(help="What the sparsity counts: ffn by default, decoder where more than FFN widths may change."),
    ] = None,
    space: Annotated[
        SpaceName,
        typer.Option(help="What may be changed: FFN widths, KV groups (down to none), whole layers, or all of that."),
    ] = SpaceName.FFN,
    device: Annotated[
        str | None,
        typer.Option(
            help="Target device, see GET /v1/devices: it prices latency. With a budget its memory is a limit too; with "
            "neither sparsity nor budget, the only one."
        ),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Weights, KV cache and activations take at most this, such as 6GiB.")
    ] = None,
    latency: Annotated[
        str | None, typer.Option(help="A whole request takes at most this on the device, such as 200ms.")
    ] = None,
    flops: Annotated[
        str | None, typer.Option(help="A whole request takes at most so many operations, such as 2T.")
    ] = None,
    disk: Annotated[str | None, typer.Option(help="The weight files take at most this, such as 3GB.")] = None,
    batch: Annotated[int | None, typer.Option(help="Of the budget: prompts at once. [default: 1]")] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option(help="Of the budget: length of a prompt, its image included. [default: 1024]")
    ] = None,
    output_tokens: Annotated[
        int | None, typer.Option(help="Of the budget: tokens generated for each prompt. [default: 128]")
    ] = None,
    round_to: Annotated[int, typer.Option(help="Widths are multiples of this.")] = DEFAULT_ROUND_TO,
    tp_size: Annotated[
        int, typer.Option(help="Devices that tensor parallelism divides each layer among: it divides every width.")
    ] = 1,
    method: Annotated[Method | None, typer.Option(help=describe_methods())] = None,
    url: Annotated[str | None, typer.Option(envvar="LOP_URL", help="Server to ask.", show_envvar=True)] = None,
    database: OptionalDatabase = None,
    schema: Annotated[
        int,
        typer.Option(
            min=1,
            max=2,
            help="Of the plan's document. 2 has room for all that a plan can say; 1 is for programs of before there "
            "was a 2, and refused where it cannot say what is meant. Both are applied alike.",
        ),
    ] = 2,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the plan here, its ranking beside it.")] = None,
    json: Json = False,
) -> None:
    """Get the per-layer plan for a sparsity or a hardware budget: from a server (--url), or from the database without
    one (--database).
    """
    from lop.workflows.planning import plan_from_database, plan_from_server

    if url is not None and database is not None:
        raise InputError("a plan comes from a server or from a database", values=f"--url {url} and --database")
    budget: dict[str, Any] = {
        "memory_bytes": None if memory is None else parse_bytes(memory),
        "latency_ms": None if latency is None else parse_milliseconds(latency),
        "flops": None if flops is None else parse_operations(flops),
        "disk_bytes": None if disk is None else parse_bytes(disk),
        "batch": batch,
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
    }
    budget = {name: value for name, value in budget.items() if value is not None}
    if sparsity is None and not budget and device is None:
        raise InputError(
            "a plan has a target",
            remedy="Give --sparsity, a budget (--memory, --latency, --flops, --disk), or a --device with its memory",
        )
    if sparsity is not None and budget:
        raise InputError(
            "a plan is for a sparsity or for a budget",
            values=f"--sparsity {sparsity} and {', '.join(budget)}",
            remedy="Leave one of them out",
        )
    request: dict[str, Any] = {
        "model": model,
        "sparsity": sparsity,
        "budget": budget or None,
        **({} if scope is None else {"scope": scope}),
        "space": space,
        "device": device,
        "round_to": round_to,
        "tp_size": tp_size,
        "method": method,
    }
    if url is not None:
        found, ranking = plan_from_server(url, schema=schema, with_ranking=out is not None, **request)
    else:
        found, ranking = plan_from_database(database, schema=schema, **request)
    if out is not None:
        from lop.workflows.planning import write_plan

        write_plan(found, ranking, out)
        stderr().print(f"wrote {out}", markup=False)
    if json:
        print_json(found.model_dump(mode="json"))
    elif out is None or typer.get_text_stream("stdout").isatty():
        show(PruningPlan.from_document(found.model_dump(mode="json")))


def show(plan: PruningPlan) -> None:
    """The plan as a table, and what is limited against what is reached."""
    achieved = plan.achieved
    print_table(
        f"plan {plan.plan_id} for {plan.model.id}, method {plan.method}: layers that are not listed stay dense",
        ["layer", "FFN width", "KV groups"],
        [[x.index, _kept(x.ffn), _kept(x.attention)] for x in plan.layers],
    )
    sparsities = ", ".join(f"{scope} {value:.4f}" for scope, value in achieved.removed.items())
    print_line(f"achieved sparsity: {sparsities}")
    print_line(f"parameters {achieved.parameters:,}")
    for line in cost_lines(plan):
        print_line(line)
    if plan.predicted is not None:
        where = f" ({plan.predicted.of} data)"
        print_line(
            f"predicted KL to dense: {plan.predicted.quality:.4f}{_range(plan.predicted.interval, '.4f')}{where}"
        )
        for what, share, interval in (
            ("exact match", plan.predicted.accuracy, plan.predicted.accuracy_interval),
            ("agreement with the dense model", plan.predicted.agreement, plan.predicted.agreement_interval),
        ):
            if share is not None:
                print_line(f"predicted {what}: {share:.1%}{_range(interval, '.1%')}{where}")
    if plan.provenance.note:
        print_line(f"note: {plan.provenance.note}")


def _kept(kept: Kept | None) -> str:
    if kept is None:
        return "dense"
    bits = "" if kept.bits is None else f", {kept.bits} bits"
    density = "" if kept.density is None else f", density {kept.density:g}"
    return f"{kept.units}{bits}{density}" if kept.units else "skipped"


def _range(bounds: tuple[float, float] | None, form: str) -> str:
    """What nine plans in ten keep to, if it is known."""
    return "" if bounds is None else f" ({bounds[0]:{form}} to {bounds[1]:{form}})"


def cost_lines(plan: PruningPlan) -> list[str]:
    """What the plan costs, each with its limit if there is one, and the workload that it is for."""
    achieved, budget = plan.achieved, plan.target.budget
    lines = []
    for name, label, unit in (
        ("disk_bytes", "on disk", "bytes"),
        ("memory_bytes", "in memory", "bytes"),
        ("flops", "operations", "FLOPs"),
        ("latency_ms", "latency", "ms"),
    ):
        reached = getattr(achieved, name)
        if reached is None:
            continue
        most = None if budget is None else getattr(budget, name)
        limit = "" if most is None else f", at most {most:,} allowed"
        lines.append(f"{label} {reached:,} {unit}{limit}")
    if achieved.prefill_ms is not None and achieved.decode_ms_per_token is not None:
        lines[-1] += (
            f" ({achieved.latency_source}: prefill {achieved.prefill_ms:,.3f} ms, "
            f"then {achieved.decode_ms_per_token:,.3f} ms a token)"
        )
    work = achieved.workload
    lines.append(f"for batch {work.batch}, {work.prompt_tokens} prompt tokens and {work.output_tokens} output tokens")
    return lines
