"""What a search is asked to do. Together with the metrics it reads, this determines everything it does."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from pruning.anatomy import ModelAnatomy
from pruning.errors import InfeasibleTargetError, InputError
from pruning.levels import DEFAULT_NUM_LEVELS, DEFAULT_ROUND_TO, LevelGrid
from pruning.target import Scope, check_sparsity, ffn_parameter_budget, scope_parameters


@dataclass(frozen=True, slots=True)
class SearchTarget:
    """One target made concrete: FFN parameters that may be kept, and the sparsity it came from, if any."""

    label: str
    budget: int
    sparsity: float | None


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """Settings of a search; a JSON document by `to_dict` and `from_dict`.

    Attributes:
        sparsities: targets as fractions of `scope` to remove, searched in this order.
        budgets: targets as FFN parameters to keep, searched after the sparsities.
        scope: what `sparsities` count.
        num_evaluations: configurations scored per target, the sensitivity scan not counted.
        seed: of every random choice.
        num_levels: K, choices per layer.
        round_to: widths are multiples of it.
        parallel_leaves: configurations handed to the evaluator at once; more than 1 pays only if they run in parallel.
        c_puct: weight of exploration in PUCT.
        temperature: of the prior, in nats of log KL per decision.
        refit_every: evaluations between two fits of the surrogate table.
        trust_radius: levels around the incumbent inside which the surrogate's prior is believed.
        move_share: fraction of evaluations spent on swap moves at good configurations instead of tree leaves.
        prior_share: weight of a prior that is handed in (a trained predictor) against the surrogate's.
    """

    sparsities: tuple[float, ...] = ()
    budgets: tuple[int, ...] = ()
    scope: Scope = Scope.FFN
    num_evaluations: int = 200
    seed: int = 0
    num_levels: int = DEFAULT_NUM_LEVELS
    round_to: int = DEFAULT_ROUND_TO
    parallel_leaves: int = 1
    c_puct: float = 1.0
    temperature: float = 0.03
    refit_every: int = 8
    trust_radius: int = 2
    move_share: float = 0.5
    prior_share: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsities", tuple(check_sparsity(s) for s in self.sparsities))
        object.__setattr__(self, "budgets", tuple(self.budgets))
        object.__setattr__(self, "scope", Scope(self.scope))
        if not self.sparsities and not self.budgets:
            raise InputError("a search needs at least one target", remedy="Give sparsities, or budgets in parameters")
        whole = {"num_evaluations": 1, "seed": 0, "num_levels": 2, "round_to": 1, "parallel_leaves": 1}
        whole |= {"refit_every": 1, "trust_radius": 0}
        for name, least in whole.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name} must be an integer of at least {least}", values=repr(value))
        for budget in self.budgets:
            if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
                raise InputError("a budget must be a positive number of parameters", values=repr(budget))
        for name in ("c_puct", "temperature"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} must be a positive number", values=repr(getattr(self, name)))
        for name in ("move_share", "prior_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"{name} must be a fraction in [0, 1]", values=repr(getattr(self, name)))

    def resolve_targets(self, anatomy: ModelAnatomy, grid: LevelGrid) -> tuple[SearchTarget, ...]:
        """The budgets of all targets, in search order.

        Raises:
            InfeasibleTargetError: the first target that no configuration of `grid` can meet.
        """
        lowest = grid.min_cost_from[0]
        removable = (anatomy.ffn_parameters - lowest) / scope_parameters(anatomy, self.scope)
        targets = []
        for sparsity in self.sparsities:
            label = f"sparsity {sparsity:g} ({self.scope})"
            try:
                budget = ffn_parameter_budget(anatomy, sparsity, self.scope, round_to=self.round_to)
            except InfeasibleTargetError as error:
                raise _out_of_reach(label, lowest, _floor_digits(removable)) from error
            if budget < lowest:
                raise _out_of_reach(label, lowest, _floor_digits(removable))
            targets.append(SearchTarget(label, budget, sparsity))
        for budget in self.budgets:
            if budget < lowest:
                raise _out_of_reach(f"budget {budget}", lowest, lowest)
            targets.append(SearchTarget(f"budget {budget}", budget, None))
        return tuple(targets)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the inverse of `from_dict`."""
        return asdict(self) | {
            "sparsities": list(self.sparsities),
            "budgets": list(self.budgets),
            "scope": str(self.scope),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "SearchSettings":
        """Settings from a JSON document; raises InputError for a field that is unknown or has an impossible value."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise InputError(
                "unknown search setting", values=", ".join(unknown), remedy=f"Known are {', '.join(sorted(known))}"
            )
        try:
            return cls(**data)
        except (TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError("a search setting has the wrong type", values=str(error)) from error


def _floor_digits(fraction: float) -> float:
    """Rounded down to six digits: a sparsity that is offered as feasible must be."""
    return math.floor(fraction * 1e6) / 1e6


def _out_of_reach(label: str, lowest: int, nearest: float) -> InfeasibleTargetError:
    return InfeasibleTargetError(
        "a target must be within reach of the lowest level in every layer",
        values=f"target '{label}'; the lowest configuration keeps {lowest} FFN parameters",
        remedy=f"The nearest feasible value is {nearest:g}; more levels or a smaller round_to reach further",
        nearest=nearest,
    )
