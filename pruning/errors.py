"""Every error a user can meet, as one tree.

    LopError
    |- InputError (ValueError)       the user's input breaks a rule
    |  |- InfeasibleTargetError        a target outside what the model's widths allow
    |  |  '- InfeasibleBudgetError       hard limits that no widths meet at once
    |  |- UnsupportedModelError        an architecture that is not in the family table
    |  |- FingerprintMismatchError     a plan, ranking or predictor made for another model
    |  |- CheckpointError              a checkpoint folder that cannot be read or written
    |  |  '- OutputBusyError              another run writes the same output just now
    |  |- DatasetError                 a calibration file or one of its images
    |  |- PlanError                    a plan that is not one
    |  |  '- PlanSchemaError              a plan that says more than the schema that was asked for can
    |  '- NotFoundError                an id that nothing is registered under
    |- ConflictError                 an id that is registered with other content
    |- AccessError                 a key is missing, unknown, expired or revoked
    |  '- ScopeError                  a key that may not do this
    |- TooManyRequestsError        a key asked for more than its limit
    |- BusyError                  the server does as much of this at once as it may
    |- LopServerError              the server cannot be reached, or answered that it cannot serve
    |- JobError                    a job that was waited for failed, was cancelled or parked
    |- ProcessError                another of the processes that train together has ended
    |- MissingExtraError (ImportError) an optional dependency is not installed
    |- UnsupportedVersionError (ImportError) a package is installed in a version that was not tested
    '- StorageError
       |- SchemaRevisionError          the database is older or newer than the code
       '- StorageUnavailableError      the database or the data store does not answer, or has no room
          '- DataStoreUnavailableError   the data store (storage/data_store.py)

A message has three parts: the rule that was broken, the values that broke it, and the remedy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class SpaceReach:
    """What one space can do of a target: `reaches` it, or the nearest that it can.

    `binding` and `nearest_values` are of a budget, as `InfeasibleBudgetError` has them; `nearest` is of what was asked
    for, and None where the space can do nothing of it.
    """

    reaches: bool
    nearest: float | None = None
    binding: str | None = None
    nearest_values: dict[str, int | float] | None = None


class LopError(Exception):
    """Base of all errors that are worth one line to a user.

    Args:
        rule: what must hold, as a sentence without a full stop.
        values: what was found instead.
        remedy: what the user can do about it.
    """

    def __init__(self, rule: str, *, values: str = "", remedy: str = "") -> None:
        self.rule = rule
        self.values = values
        self.remedy = remedy
        found = f" (got {values})" if values else ""
        advice = f". {remedy}" if remedy else ""
        super().__init__(f"{rule}{found}{advice}")


class InputError(LopError, ValueError):
    """The user's input breaks a rule."""


class InfeasibleTargetError(InputError):
    """A target that no allowed widths can meet; `nearest` is the closest feasible value of the same quantity.

    `spaces` says by its name what each space can do of the target, the one asked for among them; empty where only one
    space was looked at.
    """

    def __init__(
        self,
        rule: str,
        *,
        values: str = "",
        remedy: str = "",
        nearest: float | None = None,
        spaces: Mapping[str, SpaceReach] | None = None,
    ) -> None:
        super().__init__(rule, values=values, remedy=remedy)
        self.nearest = nearest
        self.spaces = dict(spaces or {})


class InfeasibleBudgetError(InfeasibleTargetError):
    """Hard limits that no allowed widths meet.

    `binding` names the limit that is exceeded most, `nearest_values` gives the nearest feasible value of each that was
    asked for; `nearest` is the one of `binding`.
    """

    def __init__(
        self,
        rule: str,
        *,
        values: str = "",
        remedy: str = "",
        binding: str,
        nearest_values: dict[str, int | float],
        spaces: Mapping[str, SpaceReach] | None = None,
    ) -> None:
        super().__init__(rule, values=values, remedy=remedy, nearest=nearest_values[binding], spaces=spaces)
        self.binding = binding
        self.nearest_values = nearest_values


class UnsupportedModelError(InputError):
    """An architecture that the family table does not list."""


class FingerprintMismatchError(InputError):
    """A plan, a ranking or a predictor that was made for another model."""


class CheckpointError(InputError):
    """A checkpoint folder that cannot be read, or an output folder that cannot be written."""


class OutputBusyError(CheckpointError):
    """Another run writes the same output just now."""


class DatasetError(InputError):
    """A conversation file, or an image that it names, cannot be used."""


class PlanError(InputError):
    """A document that is not a valid pruning plan."""


class PlanSchemaError(PlanError):
    """A plan that says more than the schema that was asked for can."""


class NotFoundError(InputError):
    """Nothing is registered under the given id."""


class ConflictError(LopError):
    """The id is taken by something else."""


class AccessError(LopError):
    """A key is missing, unknown, expired or revoked."""


class ScopeError(AccessError):
    """A key may not do this: that takes the scope `needs`."""

    def __init__(self, rule: str, *, values: str = "", remedy: str = "", needs: str) -> None:
        super().__init__(rule, values=values, remedy=remedy)
        self.needs = needs


class TooManyRequestsError(LopError):
    """More requests than a key may make; the next one is answered after `retry_after` seconds."""

    def __init__(self, rule: str, *, values: str = "", remedy: str = "", retry_after: int = 1) -> None:
        super().__init__(rule, values=values, remedy=remedy)
        self.retry_after = retry_after


class BusyError(LopError):
    """The server does as much of this at once as it may: later there is room again."""


class LopServerError(LopError):
    """The server cannot be reached (`status` is None), or answered that it cannot serve.

    Attributes:
        status: of its answer.
        problem: the answer's document (application/problem+json), if it was one.
    """

    def __init__(
        self,
        rule: str,
        *,
        values: str = "",
        remedy: str = "",
        status: int | None = None,
        problem: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(rule, values=values, remedy=remedy)
        self.status = status
        self.problem = problem


class JobError(LopError):
    """A job that was waited for did not end well; `job` is its document, as the server gives it."""

    def __init__(self, rule: str, *, values: str = "", remedy: str = "", job: dict[str, Any]) -> None:
        super().__init__(rule, values=values, remedy=remedy)
        self.job = job


class ProcessError(LopError):
    """The processes that train one model together cannot reach each other: mostly one has ended."""


class MissingExtraError(LopError, ImportError):
    """An optional dependency is needed and not installed."""


class UnsupportedVersionError(LopError, ImportError):
    """A package is installed in a version that what was asked for was not tested with."""


class StorageError(LopError):
    """The database cannot be used."""


class SchemaRevisionError(StorageError):
    """The database schema is not at the revision that this version of the code writes."""


class StorageUnavailableError(StorageError):
    """The database or the data store does not answer, or has no room; what was committed is intact."""
