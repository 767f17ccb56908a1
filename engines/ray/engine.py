"""Evaluating on the actors of a Ray cluster, one a device.

The driver, which is the process of the search, hands out configurations and alone writes the database. Results come
out in the order in which they were asked for, so the search decides what it would have decided without Ray. An actor
that dies, with its process or its node, is replaced, and what it had is given to another.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

from engines.memo import Measured
from engines.ray.actor import EvaluatorActor
from engines.ray.actor_capacity import ActorCapacity
from engines.ray.actor_pool import ActorPool
from engines.ray.cluster_address import resolve_address
from engines.ray.ordered_jobs import OrderedJobs
from engines.ray.session import RayError, RaySession, cluster_lost, ray, reason_of
from pruning.anatomy.architecture import Architecture
from pruning.errors import InputError
from pruning.measuring.metrics import Evaluate

WINDOW_PER_ACTOR = 4
"""Configurations measured ahead of the first that is missing, for each actor: what a killed driver loses at most."""

PLACEMENT_TIMEOUT_SECONDS = 120.0
"""How long a cluster may have no room for a single actor."""

_THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # actors share a machine's cores: one each
_QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


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
        self._pool: ActorPool | None = None

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
            session, pool = self._open()
        except (RayError, ConnectionError) as error:
            raise cluster_lost(reason_of(error)) from error
        pool.begin()
        jobs = OrderedJobs[Measured](len(architectures), window=WINDOW_PER_ACTOR * pool.size)
        try:
            while not jobs.is_done:
                try:
                    session.check()
                    pool.work(jobs, architectures)
                except (RayError, ConnectionError) as error:  # not of one actor: those were dealt with
                    raise cluster_lost(reason_of(error)) from error
                yield from jobs.results()
        finally:
            pool.drop_jobs()

    def close(self) -> None:
        """End the actors, and Ray if it was started or joined here."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()
        session, self._session = self._session, None
        if session is not None:
            session.close()

    @property
    def processes(self) -> dict[int, str]:
        """Process id and node of every actor that evaluates now."""
        return {} if self._pool is None else self._pool.processes

    def _open(self) -> tuple[RaySession, ActorPool]:
        """Connect and say what actors are, unless that was done."""
        if self._session is not None and self._pool is not None:
            return self._session, self._pool
        session = self._session = RaySession(self._address, self._num_actors)
        try:
            capacity = ActorCapacity.of(ray.nodes(), self._memory_bytes, use_gpus=self._use_gpus)
            if capacity.devices < (self._num_actors or 1):
                raise InputError(
                    "each actor needs a device of its own",
                    values=f"{self._num_actors or 1} actors, {capacity.devices} {capacity.device}s in the cluster",
                    remedy="Ask for fewer actors, or add nodes",
                )
            size = self._num_actors or capacity.num_actors
            actor_class = ray.remote(
                num_cpus=1,
                num_gpus=1 if capacity.device == "GPU" else 0,
                memory=None if self._num_actors else capacity.reserved_bytes or None,
                max_restarts=0,  # a new process has no evaluator: actors are replaced here
                runtime_env={"env_vars": self._environment},
            )(EvaluatorActor)
            pool = ActorPool(actor_class, ray.put(self._recipe), size, self._placement_timeout_seconds)
            self._pool = pool
            if self._on_open is not None:
                self._on_open(size)
        except BaseException:
            self.close()
            raise
        return session, pool
