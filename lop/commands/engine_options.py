"""Options of the commands that evaluate: on what engine."""

from typing import Annotated

import typer

from lop.workflows.engines import Engine

EngineName = Annotated[
    Engine,
    typer.Option(
        "--engine",
        help="Where evaluations run: in this process, or on the actors of a Ray cluster (needs the ray extra). "
        "The samples are the same, bit for bit on equal hardware.",
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="Ray cluster to join: auto, HOST:PORT or ray://HOST:PORT; it is left running. "
        "Default: this machine alone. Its nodes need the checkpoint and the data at the same paths.",
        show_default=False,
    ),
]
NumActors = Annotated[
    int | None,
    typer.Option(
        "--actors",
        min=1,
        help="Ray actors, each of which holds the model once. Default: one a GPU if the cluster has any, otherwise "
        "one a CPU core, as far as the nodes' memory goes.",
        show_default=False,
    ),
]
CacheGib = Annotated[
    float | None,
    typer.Option(
        "--cache-gib",
        min=0.0,
        help="What each evaluator keeps, at most: the dense model's probabilities, hidden states for configurations "
        "that begin alike. Default: a quarter of the model's size, or 0.5 if that is more.",
        show_default=False,
    ),
]
