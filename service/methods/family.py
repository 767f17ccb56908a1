"""What every family of methods is asked, and what it answers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from pruning.allocators.methods import Method
from pruning.anatomy.architecture import Architecture
from pruning.errors import InputError
from pruning.planning.axis_spaces import SpaceName
from pruning.planning.demand import Demand
from pruning.planning.limits import Limits
from pruning.planning.plan import Predicted, RecoveryStep
from pruning.planning.plan_parts import Provenance
from pruning.planning.ranking import Ranking
from service.schemas import PlanRequest
from storage.records import ModelRecord


@dataclass(frozen=True, slots=True)
class Question:
    """A request for a model that is registered, and what it asks of a plan.

    `limits` are what methods that add no biases have to meet; for others, `demand` works them out.
    """

    model: ModelRecord
    request: PlanRequest
    demand: Demand
    limits: Limits


@dataclass(frozen=True, slots=True)
class Answer:
    """What a method chose to keep, and what it knows about it.

    Attributes:
        architecture: within the question's limits, biases that `ranking` adds included.
        ranking: the method's own; None: the model's.
        predicted: the quality to expect, if the method can say.
        provenance: what the method worked from, but for the note.
        notes: what the plan's note says about how it was made.
        recovery: the training after cutting that it was chosen for, and that `predicted` is of.
    """

    architecture: Architecture
    ranking: Ranking | None = None
    predicted: Predicted | None = None
    provenance: Provenance = field(default_factory=Provenance)
    notes: tuple[str, ...] = ()
    recovery: tuple[RecoveryStep, ...] = ()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A method that can be tried. `source` names the data it works from: a new one makes a new plan.

    `answer` may raise InfeasibleTargetError, if the method cannot prune as far as others, or CheckpointError if this
    version cannot read `source`.
    """

    source: str | None
    answer: Callable[[], Answer]


@dataclass(frozen=True, slots=True)
class Unavailable:
    """A method that lacks its data: `note` says so in the plan of the next best one, `error` to who asked for it."""

    note: str
    error: InputError


def in_space(space: SpaceName) -> tuple[str, str]:
    """What an error says of `space`, and the option of a command for it: nothing for the default."""
    return ("", "") if space is SpaceName.FFN else (f" for the space '{space}'", f" --space {space}")


def of_other_spaces(method: Method, space: SpaceName) -> Unavailable:
    """What a method says that does not decide what may be changed."""
    decided = " or ".join(f"'{name}'" for name in method.spaces)
    others = ", ".join(f"'{other}'" for other in Method if space in other.spaces)
    error = InputError(
        f"method '{method}' is for the space {decided}",
        values=f"space '{space}'",
        remedy=f"Ask for one of the methods {others}, or leave `method` out",
    )
    return Unavailable(f"it is for the space {decided}", error)


class MethodFamily(Protocol):
    """Methods that work from the same kind of data. Thread-safe."""

    def find(self, method: Method, question: Question) -> Candidate | Unavailable:
        """Look for what `method` needs; quick, the work is left to the candidate's `answer`."""
