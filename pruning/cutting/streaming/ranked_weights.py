"""Whether weights are those that a plan's ranking was made on: shapes tell models apart, but no two fine-tunes."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from pruning.checkpoints.headers import weights_sha256
from pruning.errors import CheckpointError
from pruning.planning.plan import PruningPlan


class _StopError(Exception):
    """Nobody waits for the digest any more."""


@contextmanager
def checked_alongside(source: Path, plan: PruningPlan) -> Iterator[Callable[[], str | None]]:
    """Compares the weights in `source` with those of `plan` in another thread, while the block cuts them.

    The files' digest takes every byte, and cutting reads most of them: read at the same time, a file comes from the
    disk once. Yields what waits for the end and returns the warning to give, or None: the weights are the plan's, or
    it does not say which those are, as plans of earlier versions. It stops when the block ends.
    """
    wanted, stopped = plan.model.weights_sha256, threading.Event()
    if wanted is None:
        yield lambda: None
        return

    def go_on(_done: int, _total: int) -> None:
        if stopped.is_set():
            raise _StopError

    with ThreadPoolExecutor(max_workers=1) as pool:
        digest = pool.submit(weights_sha256, source, on_bytes=go_on)

        def warning() -> str | None:
            try:
                found = digest.result()
            except (OSError, CheckpointError) as error:
                return f"whether {source} holds the weights that were ranked is not known: {error}"
            return None if found == wanted else _warning(source, plan, found)

        try:
            yield warning
        finally:
            stopped.set()


def _warning(source: Path, plan: PruningPlan, found: str) -> str:
    return (
        f"{source} does not hold the weight files that were ranked: sha256 {found[:12]}, plan {plan.plan_id} is for "
        f"those of {plan.model.id} with {(plan.model.weights_sha256 or '')[:12]}. Of the same weights in another dtype "
        "or other shards, that is all there is to it; of other weights, the plan removes channels that nobody ranked: "
        "register them with `lop model add` and request a plan of their own"
    )
