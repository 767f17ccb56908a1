"""The folders of a worker: those that a job may read, and those that it writes, each by one run at a time."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from pruning.errors import CheckpointError, InputError, OutputBusyError
from service.jobs.reporting import JobReporter

POLL_SECONDS = 1.0

_logger = logging.getLogger("lop.jobs")


def folder_below(roots: tuple[Path, ...], name: str) -> Path:
    """The folder `name` under the first root that has it.

    Raises InputError without roots, CheckpointError if no root has it, or if it is a link to a place elsewhere.
    """
    if not roots:
        raise InputError(
            "a worker registers checkpoints from folders that it was given",
            values="none",
            remedy="Start it with --model-roots FOLDER, or set LOP_MODEL_ROOTS",
        )
    for root in roots:
        folder = (root / name).resolve()
        if folder.is_dir() and folder.is_relative_to(root.resolve()):
            return folder
    raise CheckpointError(
        "a checkpoint is a folder under one of the worker's roots",
        values=repr(name),
        remedy="Copy it there, or correct the name",
    )


def write_once(out: Path, write: Callable[[], object], reporter: JobReporter) -> None:
    """Call `write`, which makes the folder `out`, unless it is there: a folder is whole or absent.

    While another run writes it, that is waited for: another job that makes the same, or a worker that went silent, from
    which the job was taken over, and which still computes.

    Raises JobStopped if the job is cancelled or taken over meanwhile, and what `write` raises.
    """
    is_told = False
    while not out.is_dir():
        try:
            write()
        except OutputBusyError as error:
            if not is_told:
                _logger.warning("waiting for the run that has it: %s", error)
                is_told = True
            reporter.step(0, 1, "waiting for another run")
            time.sleep(POLL_SECONDS)
        except CheckpointError:
            if not out.is_dir():  # else it was made since we looked
                raise
