"""Evaluations per second of one process, of two without Ray and of Ray's actors, and whether they measure the same.

All score the same random configurations at half of the FFN channels, which share few layers, with the same model on the
same conversations. Starting is timed apart: a search pays it once. Two processes that know nothing of each other are
what the machine can do; two actors are held against them, and against twice one actor. Then a whole search, its
one-layer scan included, runs in one process and on two actors, and every sample that it stored is compared.
"""

import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.machine import write_results
from engines.local import LocalEngine
from engines.memo import EvaluateInOrder
from engines.ray.engine import RayEngine
from lop.workflows.engines import Engine, EngineOptions, EvaluatorRecipe
from lop.workflows.registration import read_conversations, register_model
from lop.workflows.searching import search_model
from mcts.settings import SearchSettings
from pruning.allocators.random_search import ChoiceSampler
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture
from pruning.measuring.metrics import Metrics
from pruning.planning.ffn_spaces import DEFAULT_ROUND_TO, ffn_levels
from pruning.planning.scope import Scope
from pruning.planning.target import ffn_parameter_budget, ffn_parameter_limits
from storage.sql_repository import open_repository

REFERENCE = Path(__file__).parent.parent / "reference"
SPARSITY = 0.5
MAX_ACTORS = 2
SEARCH_CONVERSATIONS = 4
SEARCH = SearchSettings(sparsities=(SPARSITY,), num_evaluations=40)

Sample = tuple[Architecture, Metrics, str]


def main(
    reference: Annotated[Path, typer.Option(help="Folder with model/ and data/calibration.json.")] = REFERENCE,
    conversations: Annotated[int, typer.Option(min=1, help="Calibration conversations.")] = 32,
    evaluations: Annotated[int, typer.Option(min=2, help="Configurations.")] = 60,
) -> None:
    """Write results/ray.json."""
    recipe = _recipe(reference, conversations)
    configurations = _configurations(recipe.model.anatomy, evaluations)
    default_threads = torch.get_num_threads()
    rows: list[dict[str, Any]] = []
    measured: list[list[Metrics]] = []

    def book(name: str, parallel: int, done: int, seconds: float, start_seconds: float | None) -> None:
        rows.append(
            {
                "engine": name,
                "parallel": parallel,
                "evaluations": done,
                "seconds": round(seconds, 2),
                "evaluations_per_second": round(done / seconds, 2),
                "start_seconds": None if start_seconds is None else round(start_seconds, 2),
            }
        )

    def measure(name: str, parallel: int, engine: EvaluateInOrder, started: float) -> None:
        begin = time.perf_counter()
        measured.append([x.metrics for x in engine(configurations)])
        book(name, parallel, evaluations, time.perf_counter() - begin, begin - started)

    for threads in dict.fromkeys((default_threads, 1)):
        torch.set_num_threads(threads)
        started = time.perf_counter()
        local = LocalEngine(recipe)
        list(local(configurations[:1]))  # loads the model
        measure("local", threads, local, started)
    for actors in range(1, MAX_ACTORS + 1):
        started = time.perf_counter()
        with RayEngine(recipe, num_actors=actors) as engine:
            while len(engine.processes) < actors:
                list(engine(configurations[:1]))
            measure("ray", actors, engine, started)
    metrics, seconds, start_seconds = _without_ray(recipe, configurations, MAX_ACTORS)
    measured.append(metrics)
    book("processes without ray", MAX_ACTORS, evaluations, seconds, start_seconds)
    rate = {(row["engine"], row["parallel"]): row["evaluations_per_second"] for row in rows}
    stored: list[list[Sample]] = []
    for options in (EngineOptions(), EngineOptions(Engine.RAY, actors=MAX_ACTORS)):
        samples, seconds = _search(reference, options)
        stored.append(samples)
        book(f"search, {options.engine}", options.actors or 1, len(samples), seconds, None)
    ceiling = rate["processes without ray", MAX_ACTORS]
    summary = {
        "evaluations_per_second_local_1_thread": rate["local", 1],
        "evaluations_per_second_local": rate["local", default_threads],
        "evaluations_per_second_1_actor": rate["ray", 1],
        "evaluations_per_second_2_actors": rate["ray", 2],
        "ceiling_of_two_processes": ceiling,
        "share_of_ideal": round(rate["ray", 2] / (2 * rate["ray", 1]), 3),
        "share_of_ceiling": round(rate["ray", 2] / ceiling, 3),
        "samples_equal": all(metrics == measured[0] for metrics in measured),
        "search_samples": len(stored[0]),
        "search_samples_equal": stored[0] == stored[1],
    }
    print(write_results("ray", summary, rows), summary)  # noqa: T201


def _without_ray(
    recipe: EvaluatorRecipe, configurations: Sequence[Architecture], num_processes: int
) -> tuple[list[Metrics], float, float]:
    """Metrics by processes that each take every `num_processes`-th configuration; seconds of work, and of starting."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(num_processes + 1)
    results = context.SimpleQueue()
    started = time.perf_counter()
    processes = [
        context.Process(target=_share, args=(recipe, configurations[index::num_processes], index, ready, results))
        for index in range(num_processes)
    ]
    for process in processes:
        process.start()
    ready.wait()
    begin = time.perf_counter()
    shares = dict(results.get() for _ in processes)
    seconds = time.perf_counter() - begin
    for process in processes:
        process.join()
    metrics = [shares[index % num_processes][index // num_processes] for index in range(len(configurations))]
    return metrics, seconds, begin - started


def _share(
    recipe: EvaluatorRecipe, configurations: Sequence[Architecture], index: int, ready: Any, results: Any
) -> None:
    """One process: wait for the others once the model is loaded, then evaluate."""
    torch.set_num_threads(1)
    try:
        engine = LocalEngine(recipe)
        list(engine(configurations[:1]))
    except BaseException:
        ready.abort()
        raise
    ready.wait()
    results.put((index, [x.metrics for x in engine(configurations)]))


def _search(reference: Path, options: EngineOptions) -> tuple[list[Sample], float]:
    """Every sample of a search with nothing stored before, in the order in which it was stored; seconds, all of it."""
    loaded, _ = read_conversations(reference / "data" / "calibration.json", SEARCH_CONVERSATIONS)
    with TemporaryDirectory() as folder, open_repository(f"sqlite:///{folder}/lop.db", create=True) as repository:
        register_model(repository, "reference", reference / "model", loaded)
        started = time.perf_counter()
        search_model(repository, "reference", loaded, SEARCH, name="calibration", engine=options, record=False)
        seconds = time.perf_counter() - started
        return [(s.architecture, s.metrics, s.source) for s in repository.list_samples("reference")], seconds


def _recipe(reference: Path, num_conversations: int) -> EvaluatorRecipe:
    loaded, _ = read_conversations(reference / "data" / "calibration.json", num_conversations)
    with (
        TemporaryDirectory() as folder,
        open_repository(f"sqlite:///{folder}/lop.db", create=True) as repository,
    ):
        record = register_model(repository, "reference", reference / "model", loaded)
        return EvaluatorRecipe.of(record, repository.get_artifact(record.ranking_sha256).content, loaded)


def _configurations(anatomy: ModelAnatomy, count: int) -> Sequence[Architecture]:
    space = ffn_levels(anatomy)
    budget = ffn_parameter_budget(anatomy, SPARSITY, Scope.FFN, round_to=DEFAULT_ROUND_TO)
    sampler = ChoiceSampler(ffn_parameter_limits(anatomy, space, budget))
    rng = np.random.default_rng(0)
    return [space.architecture(sampler.draw(rng)) for _ in range(count)]


if __name__ == "__main__":
    typer.run(main)
