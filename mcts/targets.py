"""What a search is asked for, target by target: what is small enough, or what is fast enough on a device."""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.errors import InfeasibleTargetError, InputError, SpaceReach
from pruning.planning.axis_spaces import SpaceName
from pruning.planning.latency_model import LatencyModel
from pruning.planning.limits import Limits
from pruning.planning.prices import LatencyPrice
from pruning.planning.space import Space
from pruning.planning.workload import Workload
from pruning.reasons import reason_of

DEFAULT_LATENCY_SHARES = (0.8, 0.65, 0.5)
"""Of the dense model's latency; those that a space reaches."""


@dataclass(frozen=True, slots=True)
class AllowedLatency:
    """What a request may take, in nanoseconds, of what it takes by the dense model; about `share` of it."""

    share: float
    most_ns: int
    dense_ns: int

    def to_dict(self) -> dict[str, Any]:
        """In milliseconds, as plans and requests have it."""
        return {"share": self.share, "most_ms": self.most_ns / 1e6, "dense_ms": self.dense_ns / 1e6}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "AllowedLatency":
        """The inverse; raises KeyError, TypeError, ValueError for another document."""
        return cls(float(data["share"]), round(data["most_ms"] * 1e6), round(data["dense_ms"] * 1e6))


@dataclass(frozen=True, slots=True)
class SearchTarget:
    """One target made concrete: the parameters that may be kept, and the sparsity it came from, if any.

    They are counted in the FFNs by a search of FFN widths, and in all of the decoder's layers by any other; where bits
    may change, `budget` is those layers' bytes, and where densities may, weights that are not zero. Where `latency` is
    limited, it is all that the dense model has.
    """

    label: str
    budget: int
    sparsity: float | None
    latency: AllowedLatency | None = None


@dataclass(frozen=True, slots=True)
class LatencyTargets:
    """Shares of the dense model's latency that a request may take on a device.

    Attributes:
        device: its id, in the catalogue or registered; see `pruning.devices.latency.latency_model`.
        shares: in (0, 1), searched in this order; None: those of `DEFAULT_LATENCY_SHARES` that the space reaches.
        workload: the request.
    """

    device: str
    shares: tuple[float, ...] | None = None
    workload: Workload = field(default_factory=Workload)

    def __post_init__(self) -> None:
        if not self.device or not isinstance(self.device, str):
            raise InputError("latency is of a device", values=repr(self.device), remedy="Name one")
        if self.shares is None:
            return
        object.__setattr__(self, "shares", tuple(self.shares))
        if not self.shares:
            raise InputError("latency targets are shares of the dense model's latency", remedy="Give one at least")
        for share in self.shares:
            if isinstance(share, bool) or not isinstance(share, float | int) or not 0.0 < share < 1.0:
                raise InputError("a share of the dense model's latency is between 0 and 1", values=repr(share))
        named = [f"{share:g}" for share in self.shares]
        if twice := [name for name in dict.fromkeys(named) if named.count(name) > 1]:
            raise InputError(
                "a search has each target once", values=f"latency {', '.join(twice)} again", remedy="Give it once"
            )

    def resolve(
        self,
        anatomy: ModelAnatomy,
        space: Space,
        latency: LatencyModel,
        budget: int,
        spaces: Mapping[SpaceName, Space] = MappingProxyType({}),
    ) -> tuple[SearchTarget, ...]:
        """The targets, as `latency` prices them; `budget` is what each allows of parameters. A refusal says how fast
        each of `spaces` can be.

        Raises:
            InfeasibleTargetError: a share that was named, or all of the default ones, are out of reach of `space`; with
                the least that is not, if there is one.
            InputError: `latency` has no time for what `space` may do.
        """
        price = LatencyPrice(anatomy, latency)
        dense, least = price.total, price.cost(space.architecture(space.bottom))
        asked = [
            AllowedLatency(share, math.floor(share * dense), dense) for share in self.shares or DEFAULT_LATENCY_SHARES
        ]
        reached = [allowed for allowed in asked if least <= allowed.most_ns]
        if self.shares is not None and len(reached) < len(asked):
            raise self._out_of_reach(next(x for x in asked if least > x.most_ns), least, price, spaces)
        if not reached:
            raise self._out_of_reach(asked[0], least, price, spaces)
        return tuple(SearchTarget(self._label(allowed), budget, None, allowed) for allowed in reached)

    def _label(self, allowed: AllowedLatency) -> str:
        w = self.workload
        return (
            f"latency {allowed.share:g} ({self.device}: {allowed.most_ns / 1e6:.4g} of {allowed.dense_ns / 1e6:.4g} ms "
            f"for {w.batch} x {w.prompt_tokens} + {w.output_tokens} tokens)"
        )

    def _out_of_reach(
        self, asked: AllowedLatency, least: int, price: LatencyPrice, spaces: Mapping[SpaceName, Space]
    ) -> InfeasibleTargetError:
        nearest = _nearest_share(least, asked.dense_ns)
        found, said = {}, []
        for name, space in spaces.items():
            with suppress(InputError):  # the device was profiled without what this space may do
                ns = price.cost(space.architecture(space.bottom))
                share = _nearest_share(ns, asked.dense_ns)
                found[name.value] = SpaceReach(reaches=ns <= asked.most_ns, nearest=share)
                said.append(f"{ns / 1e6:.6g} ms{'' if share is None else f' ({share:g})'} in space '{name}'")
        further = f"; a request can be brought down to {', '.join(said)}" if said else ""
        remedy = "Nothing is faster here" if nearest is None else f"The nearest feasible value is {nearest:g}"
        return InfeasibleTargetError(
            "a target must be within reach of the least option of every decision",
            values=f"target '{self._label(asked)}'; the fastest configuration takes {least / 1e6:.6g} ms",
            remedy=remedy + further,
            nearest=nearest,
            spaces=found,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the inverse of `from_dict`."""
        shares = None if self.shares is None else list(self.shares)
        return {"device": self.device, "shares": shares, "workload": self.workload.model_dump(mode="json")}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "LatencyTargets":
        """Raises InputError for a document of another form."""
        try:
            return cls(**{**data, "workload": Workload.model_validate(data["workload"])})
        except (KeyError, TypeError, ValidationError) as error:
            raise InputError("latency targets have a device, shares and a workload", values=reason_of(error)) from error


def _nearest_share(least: int, dense: int) -> float | None:
    """The smallest share of `dense` nanoseconds, in millionths, that allows `least`; None if that is all of them."""
    millionths = math.ceil(least / dense * 1e6)
    while math.floor(millionths / 1e6 * dense) < least:  # rounding may have taken the last nanosecond
        millionths += 1
    return millionths / 1e6 if millionths < 1_000_000 else None


def latency_limits(anatomy: ModelAnatomy, space: Space, allowed: AllowedLatency, latency: LatencyModel) -> Limits:
    """What keeps to `allowed`; raises InfeasibleBudgetError where nothing of `space` does."""
    return Limits(space, (LatencyPrice(anatomy, latency).limit(space, allowed.most_ns),))
