"""What a search is asked to do. Together with the metrics it reads, this determines everything it does."""

import math
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from pruning.allocators.methods import Method
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.errors import InfeasibleTargetError, InputError
from pruning.planning.ffn_spaces import DEFAULT_NUM_LEVELS, DEFAULT_ROUND_TO, ffn_levels
from pruning.planning.prices import ffn_parameters
from pruning.planning.scope import Scope, check_sparsity, scope_parameters
from pruning.planning.space import Space
from pruning.planning.target import ffn_parameter_budget

DEFAULT_PARALLEL_LEAVES = 4
"""Enough for a few devices; every leaf that is still being scored is one sample less to choose by."""


DEFAULT_SIMULATIONS = 0


class SearchMethod(StrEnum):
    """What chooses the configurations that are scored. Each is the `source` of the samples that it stores."""

    MCTS = Method.MCTS.value
    EVOLUTION = Method.EVOLUTION.value
    RANDOM = Method.RANDOM.value


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
        method: the search of this package, or one that it is compared with.
        num_evaluations: configurations scored per target, the sensitivity scan not counted.
        seed: of every random choice.
        num_levels: widths to choose from, a layer.
        round_to: widths are multiples of it.
        parallel_leaves: configurations chosen before the first of them is scored, and handed to the evaluator at once:
            as many can be measured in parallel.
        num_simulations: tree simulations that propose configurations, per evaluation. None by default: wherever this
            was measured, they added nothing to what swap moves propose (docs/search.md).
        num_parents: best configurations whose swap moves are proposed; 0 leaves the tree alone.
        num_mutations: random children of those, several switches away, that are proposed too.
        max_moves: swap moves in a row that a proposal may be improved by.
        c_puct: weight of exploration in PUCT.
        temperature: of the prior, in nats of log KL per decision.
        prior_share: weight of a prior that is handed in (a trained predictor) against the surrogate's.
    """

    sparsities: tuple[float, ...] = ()
    budgets: tuple[int, ...] = ()
    scope: Scope = Scope.FFN
    method: SearchMethod = SearchMethod.MCTS
    num_evaluations: int = 200
    seed: int = 0
    num_levels: int = DEFAULT_NUM_LEVELS
    round_to: int = DEFAULT_ROUND_TO
    parallel_leaves: int = DEFAULT_PARALLEL_LEAVES
    num_simulations: int = DEFAULT_SIMULATIONS
    num_parents: int = 8
    num_mutations: int = 16
    max_moves: int = 3
    c_puct: float = 1.0
    temperature: float = 0.1
    prior_share: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsities", tuple(check_sparsity(s) for s in self.sparsities))
        object.__setattr__(self, "budgets", tuple(self.budgets))
        object.__setattr__(self, "scope", Scope(self.scope))
        object.__setattr__(self, "method", SearchMethod(self.method))
        if not self.sparsities and not self.budgets:
            raise InputError("a search needs at least one target", remedy="Give sparsities, or budgets in parameters")
        targets = [f"sparsity {s:g}" for s in self.sparsities] + [f"budget {b}" for b in self.budgets]
        if twice := [target for target in dict.fromkeys(targets) if targets.count(target) > 1]:
            raise InputError("a search has each target once", values=f"{', '.join(twice)} again", remedy="Give it once")
        whole = {"num_evaluations": 1, "seed": 0, "num_levels": 2, "round_to": 1, "parallel_leaves": 1}
        whole |= {"num_simulations": 0, "num_parents": 0, "num_mutations": 0, "max_moves": 1}
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
        if not 0.0 <= self.prior_share <= 1.0:
            raise InputError("prior_share must be a fraction in [0, 1]", values=repr(self.prior_share))

    def space(self, anatomy: ModelAnatomy) -> Space:
        """What is searched. Raises InputError if a layer is too narrow for it."""
        return ffn_levels(anatomy, num_levels=self.num_levels, round_to=self.round_to)

    def resolve_targets(self, anatomy: ModelAnatomy) -> tuple[SearchTarget, ...]:
        """The budgets of all targets, in search order.

        Raises:
            InfeasibleTargetError: the first target that no choice of the space can meet.
        """
        space = self.space(anatomy)
        lowest = ffn_parameters(anatomy).cost(space.architecture(space.bottom))
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
            "method": str(self.method),
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
