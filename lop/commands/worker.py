"""`lop worker`: runs jobs."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from lop.commands.engine_options import CacheGib, EngineName, NumActors, RayAddress
from lop.commands.options import DEFAULT_DATABASE, DEFAULT_STORE, Database, Store, open_database
from lop.workflows.engines import Engine, EngineOptions, check_engine
from pruning.errors import InputError

HEARTBEATS = 6
"""Signs of life in the time after which a job is taken over."""


def worker(
    kinds: Annotated[
        str | None,
        typer.Option(
            help="Jobs that it takes, such as search,train. Default: register, measure, search, train, apply, recover."
        ),
    ] = None,
    poll_seconds: Annotated[float, typer.Option(min=0.1, help="Pause between two looks at an empty queue.")] = 5.0,
    stale_seconds: Annotated[
        float,
        typer.Option(
            min=1,
            help="Without a sign of life from its worker, after so long a job is taken over; on all workers alike.",
        ),
    ] = 60.0,
    once: Annotated[bool, typer.Option("--once", help="Stop when the queue is empty.")] = False,
    model_roots: Annotated[
        str | None,
        typer.Option(
            envvar="LOP_MODEL_ROOTS",
            help="Folders, separated as in PATH, under which jobs may name a checkpoint to register.",
            show_envvar=True,
        ),
    ] = None,
    outputs: Annotated[
        Path,
        typer.Option(envvar="LOP_OUTPUT_ROOT", help="Folder into which jobs write checkpoints.", show_envvar=True),
    ] = Path("lop-output"),
    store: Store = DEFAULT_STORE,
    cache: Annotated[
        Path | None,
        typer.Option(
            envvar="LOP_DATA_CACHE",
            help="Keep unpacked data sets in this folder; with Ray, at the same path on every machine.",
            show_envvar=True,
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            envvar="LOP_METRICS_PORT",
            help="Answer Prometheus at /metrics of this port, without a key; 0: any free one, which is logged.",
            show_envvar=True,
        ),
    ] = None,
    metrics_host: Annotated[str | None, typer.Option(help="Address of --metrics-port.  [default: 127.0.0.1]")] = None,
    engine: EngineName = Engine.LOCAL,
    address: RayAddress = None,
    actors: NumActors = None,
    cache_gib: CacheGib = None,
    database: Database = DEFAULT_DATABASE,
) -> None:
    """Run jobs that were asked for over HTTP, or left by `lop search --queue`, one at a time.

    Start as many as you like, on any machine that has the database, the data store and the models. Killed in the middle
    of a job, another one goes on with it; a job that three workers were lost with is parked (`lop job retry`). A
    PostgreSQL server or a data store that is away is waited for, except with `--once`.
    """
    from lop.workflows.jobs import JobRunner
    from service.jobs.settings import KINDS
    from service.logs import configure_logging
    from service.settings import load_settings
    from service.tracing import start_tracing
    from service.waiting import wait_for_database
    from service.worker import WorkerOptions, run_worker
    from service.worker_metrics import WorkerMetrics
    from storage.data_store import open_store

    options = EngineOptions(engine, address, actors, cache_gib)
    check_engine(options)  # now, not once for every search
    settings = load_settings(database_url=database, data_store=store, model_roots=model_roots)
    configure_logging(settings.log_level, settings.log_format)
    asked = None if kinds is None else [kind.strip() for kind in kinds.split(",")]
    if asked is not None and (unknown := [kind for kind in asked if kind not in KINDS]):
        raise InputError(
            "a worker takes jobs of known kinds", values=", ".join(unknown), remedy=f"Known are {', '.join(KINDS)}"
        )
    if metrics_host is not None and metrics_port is None:
        raise InputError(
            "a worker has metrics where it has a port for them",
            values=f"--metrics-host {metrics_host}",
            remedy="Choose one: --metrics-port 9100",
        )
    repository = open_database(database) if once else wait_for_database(database, lambda: open_database(database))
    if repository is None:
        return
    data = open_store(store)
    runner = JobRunner(repository, data, roots=settings.model_folders, outputs=outputs, cache=cache, engine=options)

    waiting = WorkerOptions(
        poll_seconds=poll_seconds,
        heartbeat_seconds=stale_seconds / HEARTBEATS,
        stale_seconds=stale_seconds,
        kinds=asked,
        once=once,
    )
    tracing = start_tracing(settings, "lop-worker")
    metrics = WorkerMetrics()
    try:
        with nullcontext() if metrics_port is None else metrics.served(metrics_host or "127.0.0.1", metrics_port):
            run_worker(repository, runner, options=waiting, tracing=tracing, metrics=metrics, check_store=data.check)
    finally:
        tracing.close()
