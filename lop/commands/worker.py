"""`lop worker`: runs queued searches."""

from typing import Annotated, Any

import typer

from lop.commands.engine_options import CacheGib, EngineName, NumActors, RayAddress
from lop.commands.options import DEFAULT_DATABASE, Database, open_database
from lop.console.console import stderr
from lop.workflows.engines import Engine, EngineOptions, check_engine


def worker(
    poll_seconds: Annotated[float, typer.Option(min=0.1, help="Pause between two looks at an empty queue.")] = 5.0,
    once: Annotated[bool, typer.Option("--once", help="Stop when the queue is empty.")] = False,
    engine: EngineName = Engine.LOCAL,
    address: RayAddress = None,
    actors: NumActors = None,
    cache_gib: CacheGib = None,
    database: Database = DEFAULT_DATABASE,
) -> None:
    """Run the searches that `lop search --queue` left, each followed by training the model's predictor."""
    from lop.workflows.searching import run_queued
    from mcts.progress import SearchProgressBar
    from service.logs import configure_logging
    from service.settings import load_settings
    from service.worker import WorkerOptions, run_worker
    from storage.records import SearchRecord

    options = EngineOptions(engine, address, actors, cache_gib)
    check_engine(options)  # now, not once for every search
    configure_logging(load_settings(database_url=database).log_level)
    repository = open_database(database)
    repository.check()

    def handle(search: SearchRecord) -> dict[str, Any]:
        stderr().print(f"search {search.id} of {search.model_id}", markup=False)
        with SearchProgressBar() as progress:
            return run_queued(repository, search, progress, engine=options)

    run_worker(repository, handle, options=WorkerOptions(poll_seconds=poll_seconds, once=once))
