"""Evaluations per second of one process and of Ray's actors, and whether they measure the same.

All score the same random configurations at half of the FFN channels, which share few layers, with the same model on the
same conversations. Starting is timed apart: a search pays it once.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.machine import write_results
from lop.engines import EvaluatorRecipe, LocalEngine
from lop.registration import read_conversations, register_model
from mcts.evaluator import EvaluateInOrder
from mcts.ray_engine import RayEngine
from pruning.allocators.random_search import ConfigurationSampler
from pruning.anatomy import ModelAnatomy
from pruning.levels import LevelGrid
from pruning.metrics import Metrics, Widths
from pruning.target import Scope, ffn_parameter_budget
from storage.sql_repository import open_repository

REFERENCE = Path(__file__).parent.parent / "reference"
SPARSITY = 0.5
MAX_ACTORS = 2


def main(
    reference: Annotated[Path, typer.Option(help="Folder with model/ and data/calibration.json.")] = REFERENCE,
    conversations: Annotated[int, typer.Option(min=1, help="Calibration conversations.")] = 32,
    evaluations: Annotated[int, typer.Option(min=1, help="Configurations.")] = 100,
) -> None:
    """Write results/ray.json."""
    recipe = _recipe(reference, conversations)
    configurations = _configurations(recipe.model.anatomy, evaluations)
    default_threads = torch.get_num_threads()
    rows: list[dict[str, Any]] = []
    measured: list[list[Metrics]] = []

    def book(name: str, parallel: int, engine: EvaluateInOrder, started: float) -> None:
        begin = time.perf_counter()
        measured.append(list(engine(configurations)))
        seconds = time.perf_counter() - begin
        rows.append(
            {
                "engine": name,
                "parallel": parallel,
                "evaluations": evaluations,
                "seconds": round(seconds, 2),
                "evaluations_per_second": round(evaluations / seconds, 2),
                "start_seconds": round(begin - started, 2),
            }
        )

    for threads in dict.fromkeys((1, default_threads)):
        torch.set_num_threads(threads)
        started = time.perf_counter()
        local = LocalEngine(recipe)
        list(local(configurations[:1]))  # loads the model
        book("local", threads, local, started)
    for actors in range(1, MAX_ACTORS + 1):
        started = time.perf_counter()
        with RayEngine(recipe, num_actors=actors) as engine:
            while len(engine.processes) < actors:
                list(engine(configurations[:1]))
            book("ray", actors, engine, started)
    rate = {(row["engine"], row["parallel"]): row["evaluations_per_second"] for row in rows}
    summary = {
        "evaluations_per_second_local_1_thread": rate["local", 1],
        "evaluations_per_second_local": rate["local", default_threads],
        "evaluations_per_second_1_actor": rate["ray", 1],
        "evaluations_per_second_2_actors": rate["ray", 2],
        "share_of_ideal": round(rate["ray", 2] / (2 * rate["ray", 1]), 3),
        "samples_equal": all(metrics == measured[0] for metrics in measured),
    }
    print(write_results("ray", summary, rows), summary)  # noqa: T201


def _recipe(reference: Path, num_conversations: int) -> EvaluatorRecipe:
    loaded, _ = read_conversations(reference / "data" / "calibration.json", num_conversations)
    with (
        TemporaryDirectory() as folder,
        open_repository(f"sqlite:///{folder}/lop.db", create=True) as repository,
    ):
        record = register_model(repository, "reference", reference / "model", loaded)
        return EvaluatorRecipe.of(record, repository.get_artifact(record.ranking_sha256).content, loaded)


def _configurations(anatomy: ModelAnatomy, count: int) -> Sequence[Widths]:
    grid = LevelGrid.build(anatomy)
    sampler = ConfigurationSampler(grid, ffn_parameter_budget(anatomy, SPARSITY, Scope.FFN, round_to=grid.round_to))
    rng = np.random.default_rng(0)
    return [tuple(grid.widths_of(sampler.draw(rng))) for _ in range(count)]


if __name__ == "__main__":
    typer.run(main)
