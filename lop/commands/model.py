"""`lop model`: registering models, measuring what methods without a search need to know of them, removing them."""

from pathlib import Path
from typing import Annotated

import typer

from lop.commands.options import DEFAULT_DATABASE, Database, Json, conversations_of, open_database
from lop.console.console import bar, print_json, print_line, print_table, stages, warn
from pruning.measuring.criterion import Criterion

app = typer.Typer(help="Register models, measure them, list and remove them.", no_args_is_help=True)


@app.command("add")
def add(
    model_id: Annotated[str, typer.Argument(metavar="ID", help="The id to register the model under.")],
    folder: Annotated[Path, typer.Argument(help="Checkpoint folder in Hugging Face layout (safetensors).")],
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="Calibration conversations, LLaVA-format JSON.")
    ] = None,
    weights_only: Annotated[
        bool, typer.Option("--weights-only", help="Rank by the weights alone, instead of on --data: quick, and worse.")
    ] = False,
    conversations: Annotated[int | None, typer.Option(min=1, help="Use only the first N.")] = None,
    criterion: Annotated[
        Criterion,
        typer.Option(
            help="activations: by the size of what a unit adds. elimination: units go one after the other, each time "
            "the one of which least is lost once the others make up for it: for `lop apply --reconstruct`."
        ),
    ] = Criterion.ACTIVATIONS,
    second_order: Annotated[
        Path | None,
        typer.Option(help="Folder for what elimination measures, to be kept. Default: a temporary one."),
    ] = None,
    reconstruct: Annotated[
        bool,
        typer.Option(
            "--reconstruct",
            help="Search, predict and plan for models whose kept weights are solved anew on --data, as `lop apply "
            "--reconstruct` does: its plans are applied with that.",
        ),
    ] = False,
    database: Database = DEFAULT_DATABASE,
    json: Json = False,
) -> None:
    """Register a model: read its anatomy, rank its FFN channels and KV groups by what they do on calibration data.

    One decoder layer is in memory at a time, so a model may be larger than the machine: what is needed is room for its
    largest part (all but the decoder, or one layer) and about 3 GB; hidden states beyond a gigabyte wait in a temporary
    file: in TMPDIR if that is set, else in /tmp, or in /var/tmp where /tmp is kept in memory. Without data,
    --weights-only ranks from the files; then no statistics are stored.

    --criterion elimination needs more: on the disk the squares of all layers' FFN and attention widths, 4 bytes each
    (18 GB for a 7B model), in memory ten times those of one layer. Killed, the same command goes on. With
    --reconstruct as much stays in the folder that LOP_SECOND_ORDER names (default: lop/second-order in the user's
    cache), on every machine that evaluates.
    """
    from lop.workflows.compute import warn_of_adapter
    from lop.workflows.registration import register_by_weights, register_model
    from pruning.checkpoints.anatomy_reader import read_anatomy
    from pruning.errors import InputError

    if second_order is not None and criterion is not Criterion.ELIMINATION:
        raise InputError(
            "a folder for second-order statistics belongs to --criterion elimination",
            values=f"--criterion {criterion}",
            remedy="Leave --second-order out, or choose that criterion",
        )
    if reconstruct and (weights_only or second_order is not None):
        raise InputError(
            "what is solved anew is solved on data, from statistics that stay where LOP_SECOND_ORDER says",
            values=f"--weights-only {weights_only}, --second-order {second_order}",
            remedy="Give --data FILE and --reconstruct, without these",
        )
    if weights_only and criterion is not Criterion.ACTIVATIONS:
        raise InputError(
            "a criterion is of rankings on data", values="--weights-only", remedy="Give --data FILE instead"
        )
    if weights_only == (data is not None) or (weights_only and conversations is not None):
        raise InputError(
            "a ranking is made on data or by weights only",
            values=f"--data {data}, --weights-only {weights_only}, --conversations {conversations}",
            remedy="Give --data FILE, or --weights-only without --conversations",
        )
    read_anatomy(folder)  # a bad checkpoint is told before anything is created
    warn_of_adapter(folder)
    if data is None:
        with open_database(database, create=True) as repository, stages() as stage:
            told = stage("reading weights"), stage("ranking")
            record = register_by_weights(repository, model_id, folder, on_bytes=told[0], on_rank=told[1])
        ranked = "by weights alone"
    else:
        loaded = conversations_of(data, conversations)
        with open_database(database, create=True) as repository, stages() as stage:
            told = stage("reading weights"), stage("measuring activations")
            record = register_model(
                repository,
                model_id,
                folder,
                loaded,
                name=data.name,
                criterion=criterion,
                reconstructs=reconstruct,
                work=second_order,
                on_bytes=told[0],
                on_batch=told[1],
                on_layer=stage("eliminating units") if criterion is Criterion.ELIMINATION else None,
                on_warning=warn,
            )
        how = "by elimination " if criterion is Criterion.ELIMINATION else ""
        ranked = f"{how}on {len(loaded)} conversations" + (", to be reconstructed on them" if reconstruct else "")
    anatomy = record.anatomy
    if json:
        print_json(
            {
                "id": record.id,
                "fingerprint": anatomy.fingerprint,
                "layers": anatomy.num_layers,
                "parameters": anatomy.total_parameters,
                "ffn_parameters": anatomy.ffn_parameters,
                "ranking_sha256": record.ranking_sha256,
            }
        )
        return
    print_line(
        f"registered {record.id}: {anatomy.model_type}/{anatomy.text_model_type}, {anatomy.num_layers} layers, "
        f"{anatomy.total_parameters:,} parameters ({anatomy.ffn_parameters:,} in FFNs), ranked {ranked}"
    )


@app.command("measure")
def measure(
    model_id: Annotated[str, typer.Argument(metavar="ID", help="Id of a registered model (`lop model list`).")],
    data: Annotated[Path, typer.Option("--data", "-d", help="Calibration conversations, LLaVA-format JSON.")],
    kind: Annotated[
        list[str] | None,
        typer.Option(
            "--kind",
            help="activations, gradients, zeroth-order or second-order; repeat for several. Default: all that the "
            "model lacks, but second-order, by which no method decides.",
        ),
    ] = None,
    conversations: Annotated[
        int | None,
        typer.Option(min=1, help="Use only the first N. Default: all, 10 for gradients, 32 for zeroth-order."),
    ] = None,
    database: Database = DEFAULT_DATABASE,
    json: Json = False,
) -> None:
    """Measure statistics of a registered model: what `lop plan --method flap`, `owl`, `ecoflap`, ... decide from.

    Activations take one forward pass over the data (`lop model add --data` made one already), gradients one backward
    pass, zeroth-order six forward passes a layer and batch of 8; second-order is what --criterion elimination of
    `lop model add` ranks by. What is stored for the same conversations is not measured again.

    Activations and second-order need memory for one decoder layer at a time; second-order as --criterion elimination
    does. Gradients and zeroth-order load the whole model: gradients need room for it, for gradients of its FFNs and for
    all activations of one conversation; zeroth-order for it in float32.
    """
    from lop.workflows.measuring import StatisticsMeasurer, kinds_of

    asked = kinds_of(kind or [])
    rows = []
    with open_database(database) as repository:
        measurer = StatisticsMeasurer(repository, model_id)
        loaded = conversations_of(data, conversations)
        for wanted in asked or measurer.missing():
            with bar(f"measuring {wanted}") as on_batch:
                record = measurer.measure(
                    wanted,
                    loaded,
                    name=data.name,
                    num_conversations=conversations,
                    on_batch=on_batch,
                    on_warning=warn,
                )
            used = repository.get_calibration(record.calibration_id)
            rows.append(
                {
                    "kind": record.kind,
                    "conversations": used.num_conversations,
                    "calibration": record.calibration_id,
                    "sha256": record.sha256,
                }
            )
    if json:
        print_json({"model": model_id, "statistics": rows})
    elif rows:
        print_table(f"statistics of {model_id}", list(rows[0]), [list(row.values()) for row in rows])
    else:
        print_line(f"{model_id} lacks no statistics; --kind measures one on other conversations")


@app.command("list")
def list_models(database: Database = DEFAULT_DATABASE, json: Json = False) -> None:
    """List registered models with their statistics, samples and predictors."""
    rows = []
    with open_database(database) as repository:
        for record in repository.list_models():
            predictor = repository.latest_predictor(record.id)
            rows.append(
                {
                    "id": record.id,
                    "type": f"{record.anatomy.model_type}/{record.anatomy.text_model_type}",
                    "parameters": record.anatomy.total_parameters,
                    "statistics": sorted({x.kind for x in repository.list_statistics(record.id)}),
                    "samples": repository.count_samples(record.id),
                    "predictor": predictor.id if predictor else None,
                    "path": record.path,
                }
            )
    if json:
        print_json(rows)
        return
    columns = ["id", "type", "parameters", "statistics", "samples", "predictor", "path"]
    cells = [[", ".join(x) if isinstance(x := row[column], list) else x for column in columns] for row in rows]
    print_table("models", columns, [["-" if cell in ("", None) else cell for cell in row] for row in cells])


@app.command("remove")
def remove(
    model_id: Annotated[str, typer.Argument(metavar="ID", help="Id of a registered model (`lop model list`).")],
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this, only what would go is shown.")] = False,
    database: Database = DEFAULT_DATABASE,
    json: Json = False,
) -> None:
    """Show what goes with a model, and with --yes remove it: statistics, samples, predictors, searches and plans of it,
    and the files that nothing else refers to. The checkpoint, data sets, calibration sets and jobs stay.

    A model that a job waits for or is about is not removed. Make a backup first (`lop db backup`).
    """
    with open_database(database) as repository:
        removal = repository.remove_model(model_id) if yes else repository.plan_removal(model_id)
    if json:
        print_json({"model": model_id, "removed": yes, "rows": removal.rows, "artifact_bytes": removal.artifact_bytes})
        return
    counts = ", ".join(f"{number:,} {name}" for name, number in removal.rows.items())
    what = f"{model_id}: {counts} of {removal.artifact_bytes:,} bytes"
    print_line(f"removed {what}" if yes else f"{what} would go. Nothing was removed: that takes --yes")
