"""Targets of time: what a search is asked for where a device is to be fast enough, not only a model small enough."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.errors import InfeasibleTargetError, InputError
from pruning.planning.latency_model import LatencyModel
from pruning.planning.limits import Limits
from pruning.planning.prices import LatencyPrice
from pruning.planning.space import Space
from pruning.planning.workload import Workload
from pruning.reasons import reason_of

DEFAULT_SHARES = (0.8, 0.65, 0.5)
"""Of the dense model's time."""


@dataclass(frozen=True, slots=True)
class TimeTargets:
    """Shares of the dense model's time that a request may take on a device.

    Attributes:
        device: its id, in the catalogue or registered; see `pruning.devices.latency.latency_model`.
        shares: in (0, 1), searched in this order.
        workload: the request.
    """

    device: str
    shares: tuple[float, ...] = DEFAULT_SHARES
    workload: Workload = field(default_factory=Workload)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shares", tuple(self.shares))
        if not self.device or not isinstance(self.device, str):
            raise InputError("targets of time are of a device", values=repr(self.device), remedy="Name one")
        if not self.shares:
            raise InputError("targets of time are shares of the dense model's time", remedy="Give one at least")
        for share in self.shares:
            if isinstance(share, bool) or not isinstance(share, float | int) or not 0.0 < share < 1.0:
                raise InputError("a share of the dense model's time is between 0 and 1", values=repr(share))
        if len(set(self.shares)) < len(self.shares):
            raise InputError(
                "a search has each target once", values=f"shares of the time {list(self.shares)}", remedy="Give it once"
            )

    def label(self, share: float) -> str:
        """Of one target, in words."""
        w = self.workload
        return f"time {share:g} ({self.device}, {w.batch} x {w.prompt_tokens} + {w.output_tokens} tokens)"

    def budget(self, anatomy: ModelAnatomy, space: Space, share: float, latency: LatencyModel) -> int:
        """Nanoseconds that `share` allows, priced by `latency`.

        Raises:
            InfeasibleTargetError: no choice of `space` is as fast; with the least share that one reaches.
            InputError: `latency` has no time for what `space` may do.
        """
        price = LatencyPrice(anatomy, latency)
        most, least = math.floor(share * price.total), price.cost(space.architecture(space.bottom))
        if least > most:
            nearest = math.ceil(least / price.total * 1e6) / 1e6
            raise InfeasibleTargetError(
                "a target must be within reach of the least option of every decision",
                values=f"target '{self.label(share)}'; the fastest configuration takes {least / 1e6:.6g} ms of "
                f"{price.total / 1e6:.6g} ms",
                remedy=f"The nearest feasible value is {nearest:g}; spaces that skip sub-layers reach further",
                nearest=nearest,
            )
        return most

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the inverse of `from_dict`."""
        return {"device": self.device, "shares": list(self.shares), "workload": self.workload.model_dump(mode="json")}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "TimeTargets":
        """Raises InputError for a document of another form."""
        try:
            return cls(**{**data, "workload": Workload.model_validate(data["workload"])})
        except (KeyError, TypeError, ValidationError) as error:
            raise InputError("targets of time have a device, shares and a workload", values=reason_of(error)) from error


def time_limits(anatomy: ModelAnatomy, space: Space, most_ns: int, latency: LatencyModel) -> Limits:
    """At most `most_ns` over `space`; raises InfeasibleBudgetError where no choice is as fast."""
    return Limits(space, (LatencyPrice(anatomy, latency).limit(space, most_ns),))
