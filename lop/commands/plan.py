"""`lop plan`: request a plan."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lop.commands.options import Json, ModelId, OptionalDatabase
from lop.console.console import print_json, stderr
from lop.console.quantities import parse_bytes, parse_milliseconds, parse_operations
from pruning.allocators.methods import Method, describe_methods
from pruning.anatomy.gguf_types import TensorType
from pruning.errors import InputError
from pruning.planning.axis_spaces import SpaceName
from pruning.planning.ffn_spaces import DEFAULT_ROUND_TO
from pruning.planning.plan import PruningPlan
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
        typer.Option(
            help="What may be changed: FFN widths, KV groups (down to none), whole layers, or all of that; the bits of "
            "weights, or those and all; or the density of weights, for a sparsity of those that are zeroed."
        ),
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
    gguf: Annotated[
        str | None,
        typer.Option(
            help="The tensors of the GGUF file that `lop export gguf` writes take at most this, such as 2GB: all of "
            "the language model's file but its vocabulary."
        ),
    ] = None,
    gguf_type: Annotated[
        TensorType | None,
        typer.Option(help="Of --gguf: the --type of that export, for what keeps its dtype. [default: f16]"),
    ] = None,
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
    after_recovery: Annotated[
        bool,
        typer.Option(
            "--after-recovery",
            help="The plan that was best once it was trained, of `lop search --after-recovery`: it counts on that "
            "training, and its quality is of the trained model.",
        ),
    ] = False,
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
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Draw what is kept of every layer into this file (PNG, SVG or PDF): of the FFN, and of attention "
            "where the space may change it."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Get the per-layer plan for a sparsity or a hardware budget: from a server (--url), or from the database without
    one (--database).
    """
    from lop.workflows.planning import plan_from_database, plan_from_server

    if plot is not None:
        from lop.console.pictures import check_picture

        check_picture(plot)
    if url is not None and database is not None:
        raise InputError("a plan comes from a server or from a database", values=f"--url {url} and --database")
    budget: dict[str, Any] = {
        "memory_bytes": None if memory is None else parse_bytes(memory),
        "latency_ms": None if latency is None else parse_milliseconds(latency),
        "flops": None if flops is None else parse_operations(flops),
        "disk_bytes": None if disk is None else parse_bytes(disk),
        "gguf_bytes": None if gguf is None else parse_bytes(gguf),
        "gguf_type": gguf_type,
        "batch": batch,
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
    }
    budget = {name: value for name, value in budget.items() if value is not None}
    if sparsity is None and not budget and device is None:
        raise InputError(
            "a plan has a target",
            remedy="Give --sparsity, a budget (--memory, --latency, --flops, --disk, --gguf), or a --device with its "
            "memory",
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
        "after_recovery": after_recovery,
    }
    shows = not json and (out is None or typer.get_text_stream("stdout").isatty())
    if url is not None:
        draws = shows or plot is not None
        found = plan_from_server(url, schema=schema, with_ranking=out is not None, with_dense=draws, **request)
    else:
        found = plan_from_database(database, schema=schema, **request)
    document = found.plan.model_dump(mode="json")
    if out is not None:
        from lop.workflows.planning import write_plan

        write_plan(found.plan, found.ranking, out)
        stderr().print(f"wrote {out}", markup=False)
    if plot is not None:
        from lop.console.plan_report import draw_plan

        draw_plan(PruningPlan.from_document(document), found.dense, plot)
        stderr().print(f"wrote {plot}", markup=False)
    if json:
        print_json(document)
    elif shows:
        from lop.console.plan_report import show_plan

        show_plan(PruningPlan.from_document(document), found.dense)
