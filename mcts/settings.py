"""What a search is asked to do. Together with the metrics it reads, this determines everything it does."""

import math
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from typing import Any

from mcts.targets import LatencyTargets, SearchTarget, latency_limits
from pruning.allocators.methods import Method
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.errors import InfeasibleTargetError, InputError
from pruning.planning.axis_spaces import SPACES_OF_UNITS, SpaceName, coarse_space
from pruning.planning.ffn_spaces import DEFAULT_NUM_LEVELS, DEFAULT_ROUND_TO
from pruning.planning.latency_model import LatencyModel
from pruning.planning.limits import Limits
from pruning.planning.nonzero_weights import nonzero_weight_budget, nonzero_weight_limits, nonzero_weights
from pruning.planning.prices import Price, decoder_bytes, ffn_parameters, parameters, weight_bytes
from pruning.planning.scope import Scope, check_sparsity, decoder_parameters_to_keep, scope_parameters
from pruning.planning.space import Space
from pruning.planning.target import (
    decoder_byte_limits,
    decoder_parameter_limits,
    ffn_parameter_budget,
    ffn_parameter_limits,
    least_decoder_parameters,
)

DEFAULT_PARALLEL_LEAVES = 4
"""Enough for a few devices; every leaf that is still being scored is one sample less to choose by."""


DEFAULT_SIMULATIONS = 0


class SearchMethod(StrEnum):
    """What chooses the configurations that are scored. Each is the `source` of the samples that it stores."""

    MCTS = Method.MCTS.value
    EVOLUTION = Method.EVOLUTION.value
    RANDOM = Method.RANDOM.value


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """Settings of a search; a JSON document by `to_dict` and `from_dict`.

    Attributes:
        sparsities: targets as fractions of `scope` to remove, searched in this order. Where bits may change, of the
            bytes of the decoder's layers, whatever the scope; where densities may, the share of the weights of all
            sub-layers that is zeroed.
        budgets: targets as parameters to keep, bytes, or weights (see SearchTarget), searched after the sparsities.
        scope: what `sparsities` count; in spaces that change more than FFN widths `decoder` or `model`.
        axes: what may be changed.
        method: the search of this package, or one that it is compared with.
        num_evaluations: configurations scored per target, the sensitivity scan not counted.
        seed: of every random choice.
        num_levels: widths to choose from, a layer, and numbers of KV groups at most.
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
        latency: targets of latency, searched last. What makes targets concrete then needs what prices their workload on
            their device (`service.devices.priced`).
    """

    sparsities: tuple[float, ...] = ()
    budgets: tuple[int, ...] = ()
    scope: Scope = Scope.FFN
    axes: SpaceName = SpaceName.FFN
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
    latency: LatencyTargets | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsities", tuple(check_sparsity(s) for s in self.sparsities))
        object.__setattr__(self, "budgets", tuple(self.budgets))
        object.__setattr__(self, "axes", SpaceName(self.axes))
        object.__setattr__(self, "scope", Scope(self.scope))
        object.__setattr__(self, "method", SearchMethod(self.method))
        if not self.sparsities and not self.budgets and self.latency is None:
            raise InputError(
                "a search needs at least one target", remedy="Give sparsities, budgets in parameters, or a latency"
            )
        if self.latency is not None and self.axes not in SPACES_OF_UNITS:
            raise InputError(
                "latency is searched where units may change",
                values=f"space '{self.axes}'",
                remedy=f"Search one of {', '.join(SPACES_OF_UNITS)}",
            )
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
        return coarse_space(anatomy, self.axes, num_levels=self.num_levels, round_to=self.round_to)

    def price(self, anatomy: ModelAnatomy) -> Price:
        """What targets limit, but for parameters that always stay."""
        if self.axes.has_bits:
            return weight_bytes(anatomy)
        if self.axes.has_density:
            return nonzero_weights(anatomy)
        return ffn_parameters(anatomy) if self.axes is SpaceName.FFN else parameters(anatomy)

    def limits(self, anatomy: ModelAnatomy, target: SearchTarget, latency: LatencyModel | None = None) -> Limits:
        """Of one of the targets, over `space`."""
        if target.latency is not None:
            return latency_limits(anatomy, self.space(anatomy), target.latency, _given(latency))
        if self.axes.has_bits:
            return decoder_byte_limits(anatomy, self.space(anatomy), target.budget)
        if self.axes.has_density:
            return nonzero_weight_limits(anatomy, self.space(anatomy), target.budget)
        limits = ffn_parameter_limits if self.axes is SpaceName.FFN else decoder_parameter_limits
        return limits(anatomy, self.space(anatomy), target.budget)

    def resolve_targets(self, anatomy: ModelAnatomy, latency: LatencyModel | None = None) -> tuple[SearchTarget, ...]:
        """All targets made concrete, in search order.

        Raises:
            InfeasibleTargetError: the first target that no choice of the space can meet.
            InputError: sparsities of FFN parameters, in a space that changes more than FFN widths, or of anything but
                the decoder in that of densities; or `latency` has no time for what the space may do.
        """
        lowest, all_of_them = self._reach(anatomy)
        own = "decoder bytes" if self.axes.has_bits else "weights zeroed" if self.axes.has_density else None
        counted = all_of_them if own is not None else scope_parameters(anatomy, self.scope)
        removable = (all_of_them - lowest) / counted
        targets = []
        for sparsity in self.sparsities:
            label = f"sparsity {sparsity:g} ({own or self.scope})"
            try:
                budget = self._budget(anatomy, sparsity)
            except InfeasibleTargetError as error:
                raise self._out_of_reach(label, anatomy, _floor_digits(removable)) from error
            if budget < lowest:
                raise self._out_of_reach(label, anatomy, _floor_digits(removable))
            targets.append(SearchTarget(label, budget, sparsity))
        for budget in self.budgets:
            if budget < lowest:
                raise self._out_of_reach(f"budget {budget}", anatomy, lowest)
            targets.append(SearchTarget(f"budget {budget}", budget, None))
        if self.latency is not None:
            spaces = self._spaces_of_units(anatomy)
            targets += self.latency.resolve(anatomy, self.space(anatomy), _given(latency), all_of_them, spaces)
        return tuple(targets)

    def _reach(self, anatomy: ModelAnatomy) -> tuple[int, int]:
        """What the cheapest choice keeps of the parameters that targets count, and all of those."""
        space = self.space(anatomy)
        if self.axes.has_bits:
            price = decoder_bytes(anatomy)
            return price.cost(space.architecture(space.bottom)), price.total
        if self.axes.has_density:
            price = nonzero_weights(anatomy)
            return price.cost(space.architecture(space.bottom)), price.total
        if self.axes is SpaceName.FFN:
            return ffn_parameters(anatomy).cost(space.architecture(space.bottom)), anatomy.ffn_parameters
        return least_decoder_parameters(anatomy, space), anatomy.decoder_parameters

    def _budget(self, anatomy: ModelAnatomy, sparsity: float) -> int:
        if self.axes.has_bits:
            return math.floor(decoder_bytes(anatomy).total * (1.0 - sparsity))
        if self.axes.has_density:
            return nonzero_weight_budget(anatomy, self.space(anatomy), sparsity, self.scope)
        if self.axes is SpaceName.FFN:
            return ffn_parameter_budget(anatomy, sparsity, self.scope, round_to=self.round_to)
        return decoder_parameters_to_keep(anatomy, sparsity, self.scope)

    def _out_of_reach(self, label: str, anatomy: ModelAnatomy, nearest: float) -> InfeasibleTargetError:
        lowest, _ = self._reach(anatomy)
        if self.axes not in SPACES_OF_UNITS:
            least, kept = (
                ("lowest density", "weights that are not zero")
                if self.axes.has_density
                else ("fewest units and bits", "bytes of the decoder")
            )
            return InfeasibleTargetError(
                f"a target must be within reach of the {least} in every layer",
                values=f"target '{label}'; the lowest configuration keeps {lowest} {kept}",
                remedy=f"The nearest feasible value is {nearest:g}",
                nearest=nearest,
            )
        if self.axes is SpaceName.FFN:
            counted, further = "FFN", "more levels or a smaller round_to reach further"
        else:
            counted, further = "decoder", f"the decoder can be brought down to {self._reach_of_each_space(anatomy)}"
        return InfeasibleTargetError(
            "a target must be within reach of the lowest level in every layer",
            values=f"target '{label}'; the lowest configuration keeps {lowest} {counted} parameters",
            remedy=f"The nearest feasible value is {nearest:g}; {further}",
            nearest=nearest,
        )

    def _reach_of_each_space(self, anatomy: ModelAnatomy) -> str:
        """Decoder parameters that the cheapest choice of each space keeps, and as a share, in words."""
        found = []
        for name, space in self._spaces_of_units(anatomy).items():
            least = least_decoder_parameters(anatomy, space)
            found.append(f"{least} parameters ({least / anatomy.decoder_parameters:.1%}) in space '{name}'")
        return ", ".join(found)

    def _spaces_of_units(self, anatomy: ModelAnatomy) -> dict[SpaceName, Space]:
        """What the same search could change instead; bits and densities leave parameters what they are."""
        found = {}
        for name in SPACES_OF_UNITS:
            with suppress(InputError):  # a model may have nothing to decide there
                found[name] = replace(self, axes=name).space(anatomy)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the inverse of `from_dict`. A search of FFN widths says what it always said."""
        document = asdict(self) | {
            "sparsities": list(self.sparsities),
            "budgets": list(self.budgets),
            "scope": str(self.scope),
            "method": str(self.method),
            "axes": str(self.axes),
        }
        if self.axes is SpaceName.FFN:
            del document["axes"]
        if self.latency is None:
            del document["latency"]
        else:
            document["latency"] = self.latency.to_dict()
        return document

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "SearchSettings":
        """Settings from a JSON document; raises InputError for a field that is unknown or has an impossible value."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise InputError(
                "unknown search setting", values=", ".join(unknown), remedy=f"Known are {', '.join(sorted(known))}"
            )
        if data.get("latency") is not None:
            data = {**data, "latency": LatencyTargets.from_dict(data["latency"])}
        try:
            return cls(**data)
        except (TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError("a search setting has the wrong type", values=str(error)) from error


def _given(latency: LatencyModel | None) -> LatencyModel:
    if latency is None:
        raise ValueError("targets of latency need what prices them")
    return latency


def _floor_digits(fraction: float) -> float:
    """Rounded down to six digits: a sparsity that is offered as feasible must be."""
    return math.floor(fraction * 1e6) / 1e6
