"""Evaluating on the actors of a Ray cluster, one a device; the only module that imports Ray.

The driver, which is the process of the search, hands out configurations and alone writes the database. Results come
out in the order in which they were asked for, so the search decides what it would have decided without Ray. An actor
that dies, with its process or its node, is replaced, and what it had is given to another.
"""

import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO, cast

from mcts.cluster_address import ClusterAddress, resolve_address
from mcts.evaluator import EvaluateInOrder
from mcts.ordered_jobs import OrderedJobs
from mcts.quiet_stdout import StdoutWithoutRay
from pruning.errors import InputError, LopError, MissingExtraError
from pruning.metrics import Metrics, Widths

try:
    import ray
    from ray.exceptions import RayError, RayTaskError, RuntimeEnvSetupError
except ImportError as error:
    raise MissingExtraError(
        "searching with Ray needs the ray extra",
        values=str(error),
        remedy='Install it with `pip install "lop-service[ray]"`',
    ) from error

MAX_DEATHS = 3
"""Actors that a configuration may have killed before it is given up, and starts that may fail for each actor."""

JOBS_AHEAD = 2
"""Configurations an actor has at once, so that it need not wait for the driver between two."""

WINDOW_PER_ACTOR = 4
"""Configurations measured ahead of the first that is missing, for each actor: what a killed driver loses at most."""

PLACEMENT_TIMEOUT_SECONDS = 120.0
"""How long a cluster may have no room for a single actor."""

OBJECT_STORE_BYTES = 128 * 2**20
"""Shared memory of a Ray that is started here: it holds the recipe, a few MB for the largest models."""

_POLL_SECONDS = 1.0
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

    def build(self, recipe: Callable[[], EvaluateInOrder]) -> None:
        """Make the evaluator. Raises the recipe's errors, the node named."""
        try:
            self._evaluate = recipe()
        except LopError as error:
            found = f"{error.values}, on node {self._node}" if error.values else f"on node {self._node}"
            raise type(error)(error.rule, values=found, remedy=error.remedy) from error

    def evaluate(self, widths: Widths) -> Metrics:
        """Metrics of FFN widths [L]."""
        (metrics,) = self._evaluate([widths])
        return cast("Metrics", metrics)


@dataclass(eq=False)
class _Worker:
    """An actor as the driver sees it: being placed on a node, building its evaluator, or evaluating.

    `pending` is what it does now if that is not an evaluation; `jobs` are its evaluations, in the order in which it
    does them.
    """

    actor: Any
    pending: Any
    node: str | None = None
    jobs: "deque[tuple[Any, int]]" = field(default_factory=deque)

    @property
    def can_evaluate(self) -> bool:
        return self.pending is None

    @property
    def next_result(self) -> Any:
        """What to wait for."""
        return self.jobs[0][0] if self.pending is None else self.pending


class RayEngine:
    """An EvaluateInOrder over actors. Use as a context manager: actors, and a Ray started here, end with the block.

    Ray is started or joined when the first configuration has to be measured. A cluster that was joined, and a Ray that
    the process had started itself, are left running.

    Equal metrics on equal hardware: one actor a GPU, or one a CPU core on one thread, which is how an evaluator
    computes in any process. Machines of different kinds round differently.

    Args:
        recipe: makes an evaluator; sent to every actor, so the modules it is of must be installed on every node.
        address: of the cluster to join, "auto", "host:port" or "ray://host:port"; None: this machine alone.
        num_actors: None: one a GPU if the cluster has any and `use_gpus`, otherwise one a CPU core.
        use_gpus: False: CPU cores even if there are GPUs.
        environment: environment variables of the actors.
        placement_timeout_seconds: how long the cluster may have no room for a single actor.

    Raises InputError for an address that is none, or fewer than one actor.
    """

    def __init__(
        self,
        recipe: Callable[[], EvaluateInOrder],
        *,
        address: str | None = None,
        num_actors: int | None = None,
        use_gpus: bool = True,
        environment: Mapping[str, str] | None = None,
        placement_timeout_seconds: float = PLACEMENT_TIMEOUT_SECONDS,
    ) -> None:
        if num_actors is not None and num_actors < 1:
            raise InputError("there must be at least one actor", values=str(num_actors))
        self._address = resolve_address(address)
        self._recipe = recipe
        self._num_actors = num_actors
        self._use_gpus = use_gpus
        self._environment = {**_THREADS, **_QUIET, **(environment or {})}
        self._placement_timeout_seconds = placement_timeout_seconds
        self._session: _RaySession | None = None
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

    def __call__(self, widths: Sequence[Widths], /) -> Iterator[Metrics]:
        """Metrics of `widths` [n][L] in order, each as soon as it and those before it are known.

        Raises:
            InputError: the cluster does not answer, or has fewer devices than actors were asked for.
            LopError: what an evaluation raised; a configuration that kills every actor it is given to; a cluster in
                which no evaluator can be started.
        """
        if not widths:
            return
        self._open()
        jobs = OrderedJobs[Metrics](len(widths), window=WINDOW_PER_ACTOR * self._target_actors)
        try:
            while not jobs.is_done:
                self._deal(jobs, widths)
                self._collect(jobs, widths)
                yield from jobs.results()
        finally:  # what is not asked for any more may run to its end; nobody looks at it
            for worker in self._workers:
                worker.jobs.clear()

    def close(self) -> None:
        """End the actors, and Ray if it was started or joined here."""
        workers, self._workers = self._workers, []
        for worker in workers:
            _kill(worker.actor)
        self._sent_recipe = None
        session, self._session = self._session, None
        if session is not None:
            session.close()

    @property
    def processes(self) -> dict[int, str]:
        """Process id and node of every actor that evaluates now."""
        ready = [worker for worker in self._workers if worker.can_evaluate]
        if not ready:  # without a connection, Ray would start itself to answer
            return {}
        found = ray.get([worker.actor.describe.remote() for worker in ready])
        return {pid: node for node, pid in found}

    # -- starting ------------------------------------------------------------------------------------------------
    def _open(self) -> None:
        """Connect and order the actors, unless that was done."""
        if self._session is not None:
            return
        self._session = _RaySession(self._address, self._num_actors)
        try:
            gpus, cpus = (int(ray.cluster_resources().get(name, 0)) for name in ("GPU", "CPU"))
            device, devices = ("GPU", gpus) if gpus and self._use_gpus else ("CPU", cpus)
            if devices < (self._num_actors or 1):
                raise InputError(
                    "each actor needs a device of its own",
                    values=f"{self._num_actors or 1} actors, {devices} {device}s in the cluster",
                    remedy="Ask for fewer actors, or add nodes",
                )
            self._target_actors = self._num_actors or devices
            self._actor_class = ray.remote(
                num_cpus=1,
                num_gpus=1 if device == "GPU" else 0,
                max_restarts=0,  # a new process has no evaluator: actors are replaced here
                runtime_env={"env_vars": self._environment},
            )(EvaluatorActor)
            self._sent_recipe = ray.put(self._recipe)
            for _ in range(self._target_actors):
                self._start_worker()
        except BaseException:
            self.close()
            raise

    def _start_worker(self) -> None:
        actor = self._actor_class.remote()
        self._workers.append(_Worker(actor, actor.describe.remote()))

    # -- working -------------------------------------------------------------------------------------------------
    def _deal(self, jobs: OrderedJobs[Metrics], widths: Sequence[Widths]) -> None:
        """Give every ready actor one configuration, and another while there are more than can be begun at once."""
        ready = [worker for worker in self._workers if worker.can_evaluate]
        for ahead in range(JOBS_AHEAD):
            for worker in ready:
                if len(worker.jobs) > ahead or (ahead and jobs.available <= len(ready)):
                    continue
                job = jobs.take()
                if job is None:
                    return
                worker.jobs.append((worker.actor.evaluate.remote(widths[job]), job))

    def _collect(self, jobs: OrderedJobs[Metrics], widths: Sequence[Widths]) -> None:
        """Wait until something happened, and book everything that did."""
        busy = {worker.next_result: worker for worker in self._workers if worker.pending is not None or worker.jobs}
        self._check_placement()
        done, rest = ray.wait(list(busy), num_returns=1, timeout=_POLL_SECONDS)
        if rest and done:
            done += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        for reference in done:
            worker = busy[reference]
            try:
                value = ray.get(reference)
            except RayTaskError as error:
                raise _as_lop_error(error, worker.node) from None
            except RuntimeEnvSetupError as error:
                raise LopError("Ray must be able to set up an actor's process", values=_reason(error)) from error
            except RayError as error:
                self._replace(worker, error, jobs, widths)
                continue
            self._advance(worker, value, jobs)

    def _advance(self, worker: _Worker, value: Any, jobs: OrderedJobs[Metrics]) -> None:
        """Book what an actor returned: an evaluation, or a step on its way to the first."""
        if worker.can_evaluate:
            _, job = worker.jobs.popleft()
            jobs.finish(job, value)
        elif worker.node is None:
            worker.node = value[0]
            worker.pending = worker.actor.build.remote(self._sent_recipe)
        else:
            worker.pending = None

    def _replace(self, worker: _Worker, error: RayError, jobs: OrderedJobs[Metrics], widths: Sequence[Widths]) -> None:
        """Start another actor instead of one that died, and give back what it had.

        Raises LopError if the configuration it was at killed others before, or if actors keep dying before they begin.
        """
        reason = _reason(error)
        _logger.warning("an actor on %s was lost: %s", worker.node or "a node", reason)
        self._workers.remove(worker)
        _kill(worker.actor)
        if worker.can_evaluate:
            (_, current), *others = worker.jobs
            for _, job in others:
                jobs.put_back(job)
            if jobs.put_back_dead(current) >= MAX_DEATHS:
                raise LopError(
                    "an evaluation must not end its process",
                    values=f"{MAX_DEATHS} actors died at FFN widths {list(widths[current])}, "
                    f"the last on {worker.node}: {reason}",
                    remedy="Check the nodes' memory, or use fewer actors; what was stored is intact",
                )
        else:
            self._failed_starts += 1
            if self._failed_starts >= MAX_DEATHS * self._target_actors:
                if self._workers:
                    return
                raise LopError(
                    "an evaluator must start on some node of the cluster",
                    values=f"{self._failed_starts} died before they could evaluate, the last: {reason}",
                    remedy="Check that lop-service is installed on every node, and the nodes' memory",
                )
        self._start_worker()

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


class _RaySession:
    """A connection to Ray: started, joined, or found in the process. Silent, and leaving things as they were."""

    def __init__(self, address: ClusterAddress | str | None, num_cpus: int | None) -> None:
        self._folder: Path | None = None
        self._connected = False
        self._terminate: Any = None
        if ray.is_initialized():
            return
        quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        self._stdout = StdoutWithoutRay(sys.stdout)
        sys.stdout = cast("TextIO", self._stdout)
        if threading.current_thread() is threading.main_thread():
            self._terminate = signal.getsignal(signal.SIGTERM)
        self._connected = True
        try:
            if address is None:
                self._start(num_cpus, quiet)
            else:
                _join(address, quiet)
        except BaseException:
            self.close()
            raise
        # Ray's own handler ends the process in good order; one that was there knows better.
        if self._terminate not in (None, signal.SIG_DFL):
            signal.signal(signal.SIGTERM, self._terminate)

    def close(self) -> None:
        """Disconnect; a Ray that was started here ends."""
        if not self._connected:
            return
        self._connected = False
        ray.shutdown()
        if self._terminate is not None:
            signal.signal(signal.SIGTERM, self._terminate)
        if cast("Any", sys.stdout) is self._stdout:
            sys.stdout = self._stdout.stream
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, num_cpus: int | None, quiet: Mapping[str, Any]) -> None:
        # A folder of its own: another Ray of this machine's users is neither found nor disturbed.
        self._folder = Path(tempfile.mkdtemp(prefix="lop-ray-", dir=os.environ.get("RAY_TMPDIR")))
        with _environment({"RAY_USAGE_STATS_ENABLED": "0"}):
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=str(self._folder),
                **quiet,
            )


def _join(address: ClusterAddress | str, quiet: Mapping[str, Any]) -> None:
    """Connect to a cluster that runs; raises InputError if there is none, or it does not take this process."""
    if isinstance(address, ClusterAddress):
        if address.is_loopback and not address.through_proxy:  # Ray goes to the node's own address then
            ClusterAddress(ray.util.get_node_ip_address(), address.port).probe()
        else:
            address.probe()
    try:
        ray.init(address=str(address), **quiet)
    except (OSError, RuntimeError, ValueError, AssertionError, RayError) as error:
        raise InputError(
            "a Ray cluster must take this process as a driver",
            values=f"{address}: {_reason(error)}",
            remedy="It takes processes on its own machines, with its versions of Python and Ray; ray://HOST:10001 "
            "is for others",
        ) from error


class _environment:  # noqa: N801 (used like a function)
    """Environment variables for the time of a block; those that are set already stay."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._added = {name: value for name, value in variables.items() if name not in os.environ}

    def __enter__(self) -> None:
        os.environ.update(self._added)

    def __exit__(self, *_: object) -> None:
        for name in self._added:
            os.environ.pop(name, None)


def _kill(actor: Any) -> None:
    try:
        ray.kill(actor, no_restart=True)
    except (RayError, RuntimeError, ValueError) as error:  # its cluster is gone already
        _logger.info("an actor could not be ended: %s", _reason(error))


def _as_lop_error(error: RayTaskError, node: str | None) -> LopError:
    """What was raised inside an actor, as it was if it is one of ours."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, LopError):
        return cause
    reason = f"{type(cause).__name__}: {cause}" if cause is not None else _reason(error)
    return LopError("an evaluation failed", values=f"{reason}, on node {node}")


def _reason(error: BaseException) -> str:
    """What went wrong, in one line: the last of a message, below Ray's particulars and tracebacks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
