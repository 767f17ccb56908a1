"""`lop model`: registering models."""

from pathlib import Path
from typing import Annotated

import typer

from lop.commands.options import DEFAULT_DATABASE, Database, Json, open_database
from lop.console import bar, print_json, print_line, print_table, warn

app = typer.Typer(help="Register models and list them.", no_args_is_help=True)


@app.command("add")
def add(
    model_id: Annotated[str, typer.Argument(metavar="ID", help="The id to register the model under.")],
    folder: Annotated[Path, typer.Argument(help="Checkpoint folder in Hugging Face layout (safetensors).")],
    data: Annotated[Path, typer.Option("--data", "-d", help="Calibration conversations, LLaVA-format JSON.")],
    conversations: Annotated[int | None, typer.Option(min=1, help="Use only the first N.")] = None,
    database: Database = DEFAULT_DATABASE,
    json: Json = False,
) -> None:
    """Register a model: read its anatomy and rank its FFN channels on calibration data."""
    from lop.registration import read_conversations, register_model
    from pruning.anatomy_reader import read_anatomy

    read_anatomy(folder)  # a bad checkpoint is told before anything is created
    loaded, warning = read_conversations(data, conversations)
    if warning:
        warn(warning)
    repository = open_database(database, create=True)
    with bar("ranking channels") as on_batch:
        record = register_model(repository, model_id, folder, loaded, on_batch=on_batch)
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
        f"{anatomy.total_parameters:,} parameters ({anatomy.ffn_parameters:,} in FFNs), "
        f"channels ranked on {len(loaded)} conversations"
    )


@app.command("list")
def list_models(database: Database = DEFAULT_DATABASE, json: Json = False) -> None:
    """List registered models with their samples and predictors."""
    repository = open_database(database)
    rows = []
    for record in repository.list_models():
        predictor = repository.latest_predictor(record.id)
        rows.append(
            {
                "id": record.id,
                "type": f"{record.anatomy.model_type}/{record.anatomy.text_model_type}",
                "parameters": record.anatomy.total_parameters,
                "samples": repository.count_samples(record.id),
                "predictor": predictor.id if predictor else None,
                "path": record.path,
            }
        )
    if json:
        print_json(rows)
    else:
        columns = ["id", "type", "parameters", "samples", "predictor", "path"]
        print_table(
            "models", columns, [[row[c] or "-" if c == "predictor" else row[c] for c in columns] for row in rows]
        )
