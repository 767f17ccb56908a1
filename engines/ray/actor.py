"""An actor that holds an evaluator: what runs on a node of the cluster, and how the driver sees it."""

import logging
import os
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from engines.local import measure
from engines.memo import Measured
from engines.ray.session import RayError, RayTaskError, ray, reason_of
from pruning.anatomy.architecture import Architecture
from pruning.errors import LopError
from pruning.measuring.metrics import Evaluate

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
class Worker:
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

    @classmethod
    def start(cls, actor_class: Any) -> "Worker":
        """A new actor, wherever Ray finds room for it."""
        actor = actor_class.remote()
        return cls(actor, actor.describe.remote())

    def end(self) -> None:
        """End the actor's process, if it is still there."""
        try:
            ray.kill(self.actor, no_restart=True)
        except (RayError, RuntimeError, ValueError) as error:  # its cluster is gone already
            _logger.info("an actor could not be ended: %s", reason_of(error))

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

    def drop_jobs(self) -> None:
        """What it was given may run to its end; nobody looks at it."""
        self.jobs.clear()
        self.before = None


def as_lop_error(error: RayTaskError, node: str | None) -> LopError:
    """What was raised inside an actor, as it was if it is one of ours."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, LopError):
        return cause
    reason = f"{type(cause).__name__}: {cause}" if cause is not None else reason_of(error)
    return LopError("an evaluation failed", values=f"{reason}, on node {node}")
