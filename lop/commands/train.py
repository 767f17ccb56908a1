"""`lop train`: the predictor."""

from pathlib import Path
from typing import Annotated

import typer

from lop.commands.options import DEFAULT_DATABASE, Database, Json, ModelId, open_database
from lop.console import print_json, print_line, stderr
from pruning.levels import DEFAULT_NUM_LEVELS, DEFAULT_ROUND_TO


def train(
    model: ModelId,
    num_levels: Annotated[int, typer.Option(min=2, help="Widths a layer, as in the search.")] = DEFAULT_NUM_LEVELS,
    round_to: Annotated[int, typer.Option(min=1, help="Rounding step, as in the search.")] = DEFAULT_ROUND_TO,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the checkpoint to this new folder.")] = None,
    database: Database = DEFAULT_DATABASE,
    json: Json = False,
) -> None:
    """Train the model's predictor on all stored samples; the server uses it from the next request on."""
    from lop.training import train_model, training_samples
    from policy_model.predictor import Predictor
    from policy_model.progress import progress_bar
    from policy_model.training import TrainingSettings

    repository = open_database(database)
    settings = TrainingSettings(num_levels=num_levels, round_to=round_to, seed=seed)
    training_samples(repository, model)  # told before torch is set to work
    with progress_bar(stderr()) as progress:
        record = train_model(repository, model, settings, progress=progress)
    if out is not None:
        Predictor.from_bytes(repository.get_artifact(record.weights_sha256).content, record.config).save(out)
    info = record.config["info"]
    if json:
        document = {"predictor": record.id, "model": model, "samples": info["num_samples"], "metrics": info["metrics"]}
        print_json(document)
    else:
        print_line(f"predictor {record.id} trained on {info['num_samples']} samples of {model}")
