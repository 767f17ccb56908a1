"""`lop train`: the predictor."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lop.commands.engine_options import CacheGib, EngineName, NumActors, RayAddress
from lop.commands.options import DEFAULT_DATABASE, Database, Json, ModelId, Seed, conversations_of, open_database
from lop.console.console import print_json, print_line, print_table, stderr
from lop.workflows.engines import Engine, EngineOptions
from pruning.errors import InputError
from pruning.planning.axis_spaces import SpaceName
from pruning.planning.ffn_spaces import DEFAULT_NUM_LEVELS, DEFAULT_ROUND_TO

if TYPE_CHECKING:
    from lop.workflows.rounds import RoundReport
    from policy_model.training import TrainingSettings
    from storage.records import PredictorRecord
    from storage.sql_repository import SqlRepository


_METRICS = {
    "value_error_log_kl": "mean error of log KL on samples that were left out",
    "agreement_error": "mean error of the agreement with the dense model, likewise",
    "accuracy_error": "mean error of the exact match, likewise",
    "policy_error_nats": "error of the policy on problems that were held out, in nats a decision",
    "policy_excess_log_kl": "log KL of what it proposes there above that of the descent that taught it",
    "num_problems": "problems whose answers it imitates",
}


def train(
    model: ModelId,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            "-d",
            help="Learn from searches on this file; rounds evaluate on it. Default: from the most samples.",
        ),
    ] = None,
    conversations: Annotated[int | None, typer.Option(min=1, help="The first N of --data, as in the search.")] = None,
    num_levels: Annotated[int, typer.Option(min=2, help="Widths a layer, as in the search.")] = DEFAULT_NUM_LEVELS,
    round_to: Annotated[int, typer.Option(min=1, help="Rounding step, as in the search.")] = DEFAULT_ROUND_TO,
    space: Annotated[SpaceName, typer.Option(help="What may be changed, as in the search.")] = SpaceName.FFN,
    rounds: Annotated[
        int,
        typer.Option(
            min=0,
            help="Rounds of improvement (needs --data): the predictor leads a search where it is unsure or was wrong, "
            "and is trained again on what that finds. What each gained is reported.",
        ),
    ] = 0,
    round_targets: Annotated[int, typer.Option(min=1, help="Budgets that a round searches.")] = 8,
    round_evaluations: Annotated[int, typer.Option(min=2, help="Configurations that it scores for each.")] = 24,
    engine: EngineName = Engine.LOCAL,
    address: RayAddress = None,
    actors: NumActors = None,
    cache_gib: CacheGib = None,
    seed: Seed = 0,
    resume: Annotated[
        Path | None,
        typer.Option(help="Folder for checkpoints: an interrupted training goes on from there. Not with --rounds."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the checkpoint to this new folder.")] = None,
    database: Database = DEFAULT_DATABASE,
    json: Json = False,
) -> None:
    """Train the model's predictor on all stored samples; the server uses it from the next request on.

    Killed in the middle of rounds, run it again: samples are stored as they are measured, rounds begin anew on them.
    """
    from lop.workflows.training import train_model, training_samples
    from policy_model.predictor import Predictor
    from policy_model.progress import progress_bar
    from policy_model.training import TrainingSettings
    from pruning.data.conversations import calibration_id, load_conversations

    if rounds and (data is None or resume is not None):
        raise InputError(
            "rounds evaluate configurations on the searched data, and resume from the stored samples",
            values=f"--rounds {rounds} " + ("without --data" if data is None else "with --resume"),
            remedy="Give the --data of the search, and no --resume",
        )
    with open_database(database) as repository:
        settings = TrainingSettings(num_levels=num_levels, round_to=round_to, axes=space, seed=seed)
        calibration = calibration_id(load_conversations(data, conversations)) if data is not None else None
        decided = None if space is SpaceName.FFN else settings.space(repository.get_model(model).anatomy)
        training_samples(repository, model, calibration, decided)  # told before torch is set to work
        reports: list[RoundReport] = []
        if rounds:
            options = EngineOptions(engine, address, actors, cache_gib)
            sizes = (rounds, round_targets, round_evaluations)
            record, reports = _in_rounds(repository, model, data, conversations, settings, sizes, options)
        else:
            with progress_bar(stderr()) as progress:
                record = train_model(
                    repository, model, settings, calibration_id=calibration, progress=progress, resume_folder=resume
                )
        if out is not None:
            Predictor.stored(repository, record).save(out)
    info = record.config["info"]
    if json:
        document = {"predictor": record.id, "model": model, "samples": info["num_samples"], "metrics": info["metrics"]}
        print_json(document | ({"rounds": [report.to_dict() for report in reports]} if rounds else {}))
        return
    if reports:
        print_table(
            "rounds: KL of the predictor's proposals over the best known at the budgets that were searched, before and "
            "after; in between, where nothing was, KL after over before; agreement of those with the dense model",
            [
                "round",
                f"{'FFN' if space is SpaceName.FFN else 'decoder'} sparsities",
                "new samples",
                "before",
                "after",
                "between",
                "agreement before",
                "after",
            ],
            [
                [
                    r.number,
                    " ".join(f"{s:.2f}" for s in r.sparsities),
                    r.new_samples,
                    f"{r.ratio_before:.3f}",
                    f"{r.ratio_after:.3f}",
                    "" if r.ratio_between is None else f"{r.ratio_between:.3f}",
                    *("-" if share is None else f"{share:.1%}" for share in (r.agreement_before, r.agreement_after)),
                ]
                for r in reports
            ],
        )
    print_line(f"predictor {record.id} trained on {info['num_samples']} samples of {model}")
    for line in metric_lines(info["metrics"]):
        print_line(line)


def metric_lines(metrics: Mapping[str, float]) -> list[str]:
    """What was measured during a training, a line each; what this version has no words for, by its name."""
    return [f"{_METRICS.get(name, name)}: {value:.4g}" for name, value in metrics.items()]


def _in_rounds(
    repository: "SqlRepository",
    model: str,
    data: Path | None,
    conversations: int | None,
    settings: "TrainingSettings",
    sizes: tuple[int, int, int],
    options: EngineOptions,
) -> "tuple[PredictorRecord, list[RoundReport]]":
    """Rounds on the engine, with a bar for every training and search, and a line on stderr for every round."""
    from lop.workflows.engines import EvaluatorRecipe, open_engine
    from lop.workflows.measuring import record_calibration
    from lop.workflows.rounds import RoundSettings, train_in_rounds
    from lop.workflows.rounds_progress import RoundsProgress
    from mcts.settings import DEFAULT_PARALLEL_LEAVES

    assert data is not None
    loaded = conversations_of(data, conversations)
    record = repository.get_model(model)
    calibration = record_calibration(repository, loaded, data.name)
    recipe = EvaluatorRecipe.of(record, repository.get_artifact(record.ranking_sha256).content, loaded)
    count, targets, evaluations = sizes

    with (
        open_engine(recipe, options, parallel_leaves=DEFAULT_PARALLEL_LEAVES) as evaluate,
        RoundsProgress() as progress,
    ):
        return train_in_rounds(
            repository,
            model,
            calibration.id,
            evaluate,
            settings,
            count,
            RoundSettings(num_targets=targets, num_evaluations=evaluations),
            on_training=progress.on_training,
            on_search=progress.on_search,
            on_round=progress.on_round,
        )
