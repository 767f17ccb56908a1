"""The actors of an engine: started, given configurations, replaced when they die."""

import logging
import time
from collections.abc import Sequence
from typing import Any

from engines.memo import Measured
from engines.ray.actor import Worker, as_lop_error
from engines.ray.ordered_jobs import OrderedJobs
from engines.ray.session import RayError, RayTaskError, RuntimeEnvSetupError, cluster_lost, ray, reason_of
from pruning.anatomy.architecture import Architecture
from pruning.errors import LopError

MAX_DEATHS = 3
"""Actors that a configuration may have killed before it is given up; starts in a row, for each actor, that may fail."""

JOBS_AHEAD = 2
"""Configurations an actor has at once, so that it need not wait for the driver between two."""

_POLL_SECONDS = 1.0
_OWNER_DIED = "owner has died"  # in Ray's message, which has no class of its own

_logger = logging.getLogger(__name__)


class ActorPool:
    """`size` actors of `actor_class`, each of which builds its evaluator by `recipe`, a reference to what was sent.

    There may be fewer while nodes are lost; for `placement_timeout_seconds` there may be none.
    """

    def __init__(self, actor_class: Any, recipe: Any, size: int, placement_timeout_seconds: float) -> None:
        self.size = size
        self._actor_class = actor_class
        self._recipe = recipe
        self._placement_timeout_seconds = placement_timeout_seconds
        self._workers: list[Worker] = []
        self._failed_starts = 0
        self._nowhere_since: float | None = None

    @property
    def processes(self) -> dict[int, str]:
        """Process id and node of every actor that evaluates now."""
        asked = [worker.actor.describe.remote() for worker in self._workers if worker.can_evaluate]
        found: dict[int, str] = {}
        for reference in asked:
            try:
                node, pid = ray.get(reference)
            except RayError:  # lost, and not noticed yet
                continue
            found[pid] = node
        return found

    def begin(self) -> None:
        """New jobs are coming: starts that failed before do not count."""
        self._failed_starts = 0

    def work(self, jobs: OrderedJobs[Measured], architectures: Sequence[Architecture]) -> None:
        """Hand out those of the `jobs`, which are places in `architectures` [n], that can be, and book what is done.

        Raises LopError for what an evaluation raised, one that kills every actor, no actor that starts, or a cluster
        that is lost or has no room.
        """
        self._fill()
        self._deal(jobs, architectures)
        self._collect(jobs, architectures)

    def drop_jobs(self) -> None:
        """Nothing is asked for any more."""
        for worker in self._workers:
            worker.drop_jobs()

    def close(self) -> None:
        """End the actors."""
        workers, self._workers = self._workers, []
        for worker in workers if ray.is_initialized() else ():  # a connection that broke would be made anew, elsewhere
            worker.end()

    def _fill(self) -> None:
        """Start the actors that are missing, unless starting has failed too often."""
        while len(self._workers) < self.size and self._failed_starts < MAX_DEATHS * self.size:
            self._workers.append(Worker.start(self._actor_class))

    def _deal(self, jobs: OrderedJobs[Measured], architectures: Sequence[Architecture]) -> None:
        """Give every ready actor one configuration, and another while there are more than can be begun at once."""
        ready = [worker for worker in self._workers if worker.can_evaluate]
        for ahead in range(JOBS_AHEAD):
            for worker in ready:
                if len(worker.jobs) > ahead or (ahead and jobs.available <= len(ready)):
                    continue
                job = jobs.take()
                if job is None:
                    return
                worker.give(architectures[job], job)

    def _collect(self, jobs: OrderedJobs[Measured], architectures: Sequence[Architecture]) -> None:
        """Wait until something happened, and book everything that did."""
        busy = {worker.next_result: worker for worker in self._workers if worker.next_result is not None}
        self._check_placement()
        done, rest = ray.wait(list(busy), num_returns=1, timeout=_POLL_SECONDS)
        if rest and done:
            done += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        lost: list[tuple[Worker, RayError]] = []
        for reference in done:
            worker = busy[reference]
            try:
                value = ray.get(reference)
            except RayTaskError as error:
                raise as_lop_error(error, worker.node) from None
            except RuntimeEnvSetupError as error:
                raise LopError("Ray must be able to set up an actor's process", values=reason_of(error)) from error
            except RayError as error:
                lost.append((worker, error))
            else:
                self._advance(worker, value, jobs)
        for worker, death in lost:
            self._remove(worker, death, jobs, architectures)
        if lost:  # with others perhaps, whose node it was: none is given anything before it has answered
            for worker in self._workers:
                if worker.next_result is None:
                    worker.pending = worker.actor.describe.remote()

    def _advance(self, worker: Worker, value: Any, jobs: OrderedJobs[Measured]) -> None:
        """Book what an actor returned: an evaluation, or a step on its way to the next."""
        if worker.can_evaluate:
            jobs.finish(worker.take_done(), value)
        elif worker.node is None:
            worker.node = value[0]
            worker.pending = worker.actor.build.remote(self._recipe)
        else:
            worker.pending = None
            if not worker.is_built:
                worker.is_built = True
                self._failed_starts = 0

    def _remove(
        self, worker: Worker, error: RayError, jobs: OrderedJobs[Measured], architectures: Sequence[Architecture]
    ) -> None:
        """Let an actor go that died, and give back what it had.

        Raises LopError if the cluster is gone, if the configuration it was at killed others before, or if actors keep
        dying before they begin.
        """
        reason = reason_of(error)
        if _OWNER_DIED in str(error):  # the owner is this process, or stands for it in the cluster
            raise cluster_lost(reason) from error
        _logger.warning("an actor on %s was lost: %s", worker.node or "a node", reason)
        self._workers.remove(worker)
        worker.end()
        if worker.is_built:
            self._failed_starts = 0  # it did start
        else:
            self._failed_starts += 1
            if self._failed_starts >= MAX_DEATHS * self.size and not self._workers:
                raise LopError(
                    "an evaluator must start on some node of the cluster",
                    values=f"{self._failed_starts} died before they could evaluate, the last: {reason}",
                    remedy="Check that lop-service is installed on every node, and the nodes' memory",
                ) from error
        if not worker.jobs:
            return
        (_, current), *others = worker.jobs
        for _, job in others:
            jobs.put_back(job)
        if not worker.has_begun():
            jobs.put_back(current)
        elif jobs.put_back_dead(current) >= MAX_DEATHS:
            raise LopError(
                "an evaluation must not end its process",
                values=f"{MAX_DEATHS} actors died at {architectures[current].document()}, "
                f"the last on {worker.node}: {reason}",
                remedy="Check the nodes' memory, or use fewer actors; what was stored is intact",
            ) from error

    def _check_placement(self) -> None:
        """Raises LopError if no actor has found a place for too long."""
        if any(worker.node is not None for worker in self._workers):
            self._nowhere_since = None
            return
        now = time.monotonic()
        self._nowhere_since = self._nowhere_since or now
        if now - self._nowhere_since > self._placement_timeout_seconds:
            raise LopError(
                "a cluster must have room for an evaluator",
                values=f"none was placed for {self._placement_timeout_seconds:g} s",
                remedy="Free a device or add a node; `ray status` shows what is in use",
            )
