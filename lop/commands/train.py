"""`lop train`: the predictor."""

from pathlib import Path
from typing import Annotated

import typer

from lop.commands.options import DEFAULT_DATABASE, Database, Json, ModelId, Seed, open_database
from lop.console import print_json, print_line, stderr
from pruning.levels import DEFAULT_NUM_LEVELS, DEFAULT_ROUND_TO


def train(
    model: ModelId,
    data: Annotated[
        Path | None,
        typer.Option("--data", "-d", help="Learn from searches on this file. Default: from the most samples."),
    ] = None,
    conversations: Annotated[int | None, typer.Option(min=1, help="The first N of --data, as in the search.")] = None,
    num_levels: Annotated[int, typer.Option(min=2, help="Widths a layer, as in the search.")] = DEFAULT_NUM_LEVELS,
    round_to: Annotated[int, typer.Option(min=1, help="Rounding step, as in the search.")] = DEFAULT_ROUND_TO,
    seed: Seed = 0,
    resume: Annotated[
        Path | None, typer.Option(help="Folder for checkpoints: an interrupted training goes on from there.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the checkpoint to this new folder.")] = None,
    database: Database = DEFAULT_DATABASE,
    json: Json = False,
) -> None:
    """Train the model's predictor on all stored samples; the server uses it from the next request on."""
    from lop.training import train_model, training_samples
    from policy_model.predictor import Predictor
    from policy_model.progress import progress_bar
    from policy_model.training import TrainingSettings
    from pruning.conversations import calibration_id, load_conversations

    repository = open_database(database)
    settings = TrainingSettings(num_levels=num_levels, round_to=round_to, seed=seed)
    calibration = calibration_id(load_conversations(data)[:conversations]) if data is not None else None
    training_samples(repository, model, calibration)  # told before torch is set to work
    with progress_bar(stderr()) as progress:
        record = train_model(
            repository, model, settings, calibration_id=calibration, progress=progress, resume_folder=resume
        )
    if out is not None:
        Predictor.from_bytes(repository.get_artifact(record.weights_sha256).content, record.config).save(out)
    info = record.config["info"]
    if json:
        document = {"predictor": record.id, "model": model, "samples": info["num_samples"], "metrics": info["metrics"]}
        print_json(document)
    else:
        print_line(f"predictor {record.id} trained on {info['num_samples']} samples of {model}")
