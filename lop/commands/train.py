"""`lop train`: the predictor."""

from pathlib import Path
from typing import Annotated

import typer

from lop.commands.options import DEFAULT_DATABASE, Database, Json, ModelId, open_database
from lop.console import print_json, print_line


def train(
    model: ModelId,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the checkpoint to this new folder.")] = None,
    database: Database = DEFAULT_DATABASE,
    json: Json = False,
) -> None:
    """Train the model's predictor on all stored samples; the server uses it from the next request on."""
    from policy_model.predictor import Predictor
    from policy_model.progress import TrainingProgressBar
    from policy_model.training import TrainingSettings

    from lop.training import train_model, training_samples

    repository = open_database(database)
    training_samples(repository, model)
    with TrainingProgressBar() as progress:
        record = train_model(repository, model, TrainingSettings(seed=seed), progress=progress)
    if out is not None:
        Predictor.from_bytes(repository.get_artifact(record.weights_sha256).content, record.config).save(out)
    if json:
        print_json({"predictor": record.id, "model": model, "samples": record.config["data"]["num_samples"]})
    else:
        print_line(f"predictor {record.id} trained on {record.config['data']['num_samples']} samples of {model}")
