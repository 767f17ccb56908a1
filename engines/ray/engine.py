"""Evaluating on the actors of a Ray cluster, one a device.

The driver, which is the process of the search, hands out configurations and alone writes the database. Results come
out in the order in which they were asked for, so the search decides what it would have decided without Ray. An actor
that dies, with its process or its node, is replaced, and what it had is given to another.
"""

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from engines.local import measure
from engines.memo import Measured
from engines.ray.actor_capacity import ActorCapacity
from engines.ray.cluster_address import resolve_address
from engines.ray.ordered_jobs import OrderedJobs
from engines.ray.session import RayError, RaySession, RayTaskError, RuntimeEnvSetupError, cluster_lost, ray, reason_of
from pruning.anatomy.architecture import Architecture
from pruning.errors import InputError, LopError
from pruning.measuring.metrics import Evaluate

MAX_DEATHS = 3
"""Actors that a configuration may have killed before it is given up; starts in a row, for each actor, that may fail."""

JOBS_AHEAD = 2
"""Configurations an actor has at once, so that it need not wait for the driver between two."""

WINDOW_PER_ACTOR = 4
"""Configurations measured ahead of the first that is missing, for each actor: what a killed driver loses at most."""

PLACEMENT_TIMEOUT_SECONDS = 120.0
"""How long a cluster may have no room for a single actor."""

_POLL_SECONDS = 1.0
_OWNER_DIED = "owner has died"  # in Ray's message, which has no class of its own
_THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # actors share a machine's cores: one each
_QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

_logger = logging.getLogger(__name__)


class EvaluatorActor:
    """Holds one evaluator, on a node of the cluster."""

    def __init__(self) -> None:
        self._node = f"{ray.util.get_node_ip_address()} ({socket.gethostname()})"
        self._evaluate: Any = None

    def describe(self) -> tuple[str, int]:
        """The node's name, and the process id there."""
        return self._node, os.getpid()

    def build(self, recipe: Callable[[], Evaluate]) -> None:
        """Make the evaluator. Raises the recipe's errors, the node named."""
        try:
            self._evaluate = recipe()
        except LopError as error:
            found = f"{error.values}, on node {self._node}" if error.values else f"on node {self._node}"
            raise type(error)(error.rule, values=found, remedy=error.remedy) from error

    def evaluate(self, architecture: Architecture) -> Measured:
        """Its metrics, and how long they took here."""
        return measure(self._evaluate, architecture)


@dataclass(eq=False)
class _Worker:
    """An actor as the driver sees it: being placed on a node, building its evaluator, or evaluating.

    `pending` is what it does now if that is not an evaluation; `jobs` are its evaluations, in the order in which it
    does them. An actor does one thing after another, so it has begun the first of them, alive, exactly if `before`
    could be done, which it was given just before; None: it was.
    """

    actor: Any
    pending: Any
    node: str | None = None
    is_built: bool = False
    jobs: "deque[tuple[Any, int]]" = field(default_factory=deque)
    before: Any = None

    @property
    def can_evaluate(self) -> bool:
        return self.pending is None

    @property
    def next_result(self) -> Any:
        """What to wait for; None if it is idle."""
        if self.pending is not None:
            return self.pending
        return self.jobs[0][0] if self.jobs else None

    def give(self, architecture: Architecture, job: int) -> None:
        """One more evaluation to do."""
        if not self.jobs:
            self.before = self.actor.describe.remote()
        self.jobs.append((self.actor.evaluate.remote(architecture), job))

    def take_done(self) -> int:
        """The evaluation that is done; the next has begun."""
        self.before = None
        return self.jobs.popleft()[1]

    def has_begun(self) -> bool:
        """Whether an actor that died had begun the first of its evaluations, so that this may be what killed it."""
        if self.before is None:
            return True
        try:
            ray.get(self.before)
        except RayError:
            return False
        return True


class RayEngine:
    """An EvaluateInOrder over actors. Use as a context manager: actors, and a Ray started here, end with the block.

    Ray is started or joined when the first configuration has to be measured. A cluster that was joined, and a Ray that
    the process had started itself, are left running.

    Equal metrics on equal hardware: one actor a GPU, or one a CPU core on one thread, which is how an evaluator
    computes in any process. Machines of different kinds round differently.

    Args:
        recipe: makes an evaluator; sent to every actor, so the modules it is of must be installed on every node.
        address: of the cluster to join, "auto", "host:port" or "ray://host:port"; None: this machine alone.
        num_actors: None: one a GPU if the cluster has any and `use_gpus`, otherwise one a CPU core as far as the nodes'
            memory goes.
        use_gpus: False: CPU cores even if there are GPUs.
        memory_bytes: what an evaluator on CPU takes; 0: not known, memory bounds nothing.
        on_open: told how many actors there will be, before they are started.
        environment: environment variables of the actors.
        placement_timeout_seconds: how long the cluster may have no room for a single actor.

    Raises InputError for an address that is none, or fewer than one actor.
    """

    def __init__(
        self,
        recipe: Callable[[], Evaluate],
        *,
        address: str | None = None,
        num_actors: int | None = None,
        use_gpus: bool = True,
        memory_bytes: int = 0,
        on_open: Callable[[int], None] | None = None,
        environment: Mapping[str, str] | None = None,
        placement_timeout_seconds: float = PLACEMENT_TIMEOUT_SECONDS,
    ) -> None:
        if num_actors is not None and num_actors < 1:
            raise InputError("there must be at least one actor", values=str(num_actors))
        self._address = resolve_address(address)
        self._recipe = recipe
        self._num_actors = num_actors
        self._use_gpus = use_gpus
        self._memory_bytes = memory_bytes
        self._on_open = on_open
        self._environment = {**_THREADS, **_QUIET, **(environment or {})}
        self._placement_timeout_seconds = placement_timeout_seconds
        self._session: RaySession | None = None
        self._sent_recipe: Any = None
        self._actor_class: Any = None
        self._workers: list[_Worker] = []
        self._target_actors = 0
        self._failed_starts = 0
        self._nowhere_since: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, architectures: Sequence[Architecture], /) -> Iterator[Measured]:
        """Metrics of `architectures` [n] in order, each as soon as it and those before it are known.

        Raises:
            InputError: the cluster does not answer, or has fewer devices than actors were asked for.
            LopError: what an evaluation raised; a configuration that kills every actor it is given to; a cluster in
                which no evaluator can be started, or that went away.
        """
        if not architectures:
            return
        try:
            session = self._open()
        except (RayError, ConnectionError) as error:
            raise cluster_lost(reason_of(error)) from error
        self._failed_starts = 0
        jobs = OrderedJobs[Measured](len(architectures), window=WINDOW_PER_ACTOR * self._target_actors)
        try:
            while not jobs.is_done:
                try:
                    session.check()
                    self._fill()
                    self._deal(jobs, architectures)
                    self._collect(jobs, architectures)
                except (RayError, ConnectionError) as error:  # not of one actor: those were dealt with
                    raise cluster_lost(reason_of(error)) from error
                yield from jobs.results()
        finally:  # what is not asked for any more may run to its end; nobody looks at it
            for worker in self._workers:
                worker.jobs.clear()
                worker.before = None

    def close(self) -> None:
        """End the actors, and Ray if it was started or joined here."""
        workers, self._workers = self._workers, []
        for worker in workers if ray.is_initialized() else ():  # a connection that broke would be made anew, elsewhere
            _kill(worker.actor)
        self._sent_recipe = None
        session, self._session = self._session, None
        if session is not None:
            session.close()

    @property
    def processes(self) -> dict[int, str]:
        """Process id and node of every actor that evaluates now."""
        ready = [worker for worker in self._workers if worker.can_evaluate]
        asked = [worker.actor.describe.remote() for worker in ready]  # without any, Ray is not touched: it would start
        found: dict[int, str] = {}
        for reference in asked:
            try:
                node, pid = ray.get(reference)
            except RayError:  # lost, and not noticed yet
                continue
            found[pid] = node
        return found

    # -- starting ------------------------------------------------------------------------------------------------
    def _open(self) -> RaySession:
        """Connect and say what actors are, unless that was done."""
        if self._session is not None:
            return self._session
        session = self._session = RaySession(self._address, self._num_actors)
        try:
            capacity = ActorCapacity.of(ray.nodes(), self._memory_bytes, use_gpus=self._use_gpus)
            if capacity.devices < (self._num_actors or 1):
                raise InputError(
                    "each actor needs a device of its own",
                    values=f"{self._num_actors or 1} actors, {capacity.devices} {capacity.device}s in the cluster",
                    remedy="Ask for fewer actors, or add nodes",
                )
            self._target_actors = self._num_actors or capacity.num_actors
            self._actor_class = ray.remote(
                num_cpus=1,
                num_gpus=1 if capacity.device == "GPU" else 0,
                memory=None if self._num_actors else capacity.reserved_bytes or None,
                max_restarts=0,  # a new process has no evaluator: actors are replaced here
                runtime_env={"env_vars": self._environment},
            )(EvaluatorActor)
            self._sent_recipe = ray.put(self._recipe)
            if self._on_open is not None:
                self._on_open(self._target_actors)
        except BaseException:
            self.close()
            raise
        return session

    def _fill(self) -> None:
        """Start the actors that are missing, unless starting has failed too often."""
        while len(self._workers) < self._target_actors and self._failed_starts < MAX_DEATHS * self._target_actors:
            actor = self._actor_class.remote()
            self._workers.append(_Worker(actor, actor.describe.remote()))

    # -- working -------------------------------------------------------------------------------------------------
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
        lost: list[tuple[_Worker, RayError]] = []
        for reference in done:
            worker = busy[reference]
            try:
                value = ray.get(reference)
            except RayTaskError as error:
                raise _as_lop_error(error, worker.node) from None
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

    def _advance(self, worker: _Worker, value: Any, jobs: OrderedJobs[Measured]) -> None:
        """Book what an actor returned: an evaluation, or a step on its way to the next."""
        if worker.can_evaluate:
            jobs.finish(worker.take_done(), value)
        elif worker.node is None:
            worker.node = value[0]
            worker.pending = worker.actor.build.remote(self._sent_recipe)
        else:
            worker.pending = None
            if not worker.is_built:
                worker.is_built = True
                self._failed_starts = 0

    def _remove(
        self, worker: _Worker, error: RayError, jobs: OrderedJobs[Measured], architectures: Sequence[Architecture]
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
        _kill(worker.actor)
        if worker.is_built:
            self._failed_starts = 0  # it did start
        else:
            self._failed_starts += 1
            if self._failed_starts >= MAX_DEATHS * self._target_actors and not self._workers:
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


def _kill(actor: Any) -> None:
    try:
        ray.kill(actor, no_restart=True)
    except (RayError, RuntimeError, ValueError) as error:  # its cluster is gone already
        _logger.info("an actor could not be ended: %s", reason_of(error))


def _as_lop_error(error: RayTaskError, node: str | None) -> LopError:
    """What was raised inside an actor, as it was if it is one of ours."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, LopError):
        return cause
    reason = f"{type(cause).__name__}: {cause}" if cause is not None else reason_of(error)
    return LopError("an evaluation failed", values=f"{reason}, on node {node}")
