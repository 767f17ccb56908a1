"""How long a request takes on a device, sub-layer by sub-layer: what every source of that knowledge gives.

A request is one prefill of the whole prompt, which gives the first token, and one decode step for each further token.
The steps are all priced at the mean number of positions that they attend to: their time is linear in it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import numpy as np

from pruning.anatomy.architecture import Site
from pruning.arrays import FloatArray, IntArray
from pruning.errors import InputError
from pruning.planning.workload import Workload

MAX_NANOSECONDS = 2**53
"""Of one part of one request: 104 days. Sums over any model's layers stay within 64 bits."""


class LatencySource(StrEnum):
    """Where a latency comes from."""

    MEASURED = "measured"
    ROOFLINE = "roofline"


@dataclass(frozen=True, slots=True)
class Latency:
    """Of one request of a workload.

    Attributes:
        prefill_ms: prompt in, first token out.
        decode_ms_per_token: each further token, at the mean cache length of the workload.
        total_ms: prefill and the (output_tokens - 1) decode steps.
    """

    prefill_ms: float
    decode_ms_per_token: float
    total_ms: float

    @classmethod
    def of_phases(cls, prefill_ns: int, decode_ns: int, workload: Workload) -> Self:
        """From the prefill and one decode step."""
        total = prefill_ns + decode_steps(workload) * decode_ns
        return cls(prefill_ms=prefill_ns / 1e6, decode_ms_per_token=decode_ns / 1e6, total_ms=total / 1e6)


def decode_steps(workload: Workload) -> int:
    """Forward passes after the prefill, which gives the first token itself."""
    return max(workload.output_tokens - 1, 0)


def mean_cache_tokens(workload: Workload) -> float:
    """Positions that a decode step attends to, its own included, averaged over the steps."""
    return workload.prompt_tokens + (max(decode_steps(workload), 1) + 1) / 2


class LatencyModel(ABC):
    """Prices one workload on one device. All times are whole nanoseconds.

    A sub-layer takes no less time with more units, and none where it is skipped: so its smallest option is the cheapest
    under this limit as it is under all others.

    Attributes:
        source: where the times come from.
        description: which profile or data sheet, and what is not counted: for the plan's note.
        times_attention: False if only layers with whole attention were timed: then the time of a layer is on its FFN,
            and there is none for cut attention, nor for anything that is skipped.
        times_bits: whether there is a time for weights in fewer bits.
    """

    source: LatencySource
    description: str
    times_attention: bool = True
    times_bits: bool = False

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self._known: dict[tuple[Hashable, bytes, bytes], tuple[IntArray, IntArray]] = {}

    @abstractmethod
    def site_phases_ns(self, site: Site, units: IntArray) -> tuple[IntArray, IntArray]:
        """The prefill and one decode step of `site` if it keeps each of `units` [K]: two [K] arrays.

        They do not fall while `units` grow, and are 0 where those are. Raises InputError for units that nobody timed.
        """

    def packed_phases_ns(self, site: Site, units: IntArray, saved: IntArray) -> tuple[IntArray, IntArray]:  # noqa: ARG002
        """The same where the weights at each of `units` take `saved` [K] bytes less; raises InputError where only
        weights as they are were timed."""
        raise InputError(
            "latency of weights in fewer bits is known by a roofline only",
            values=self.description,
            remedy="Name a device without a profile, or limit memory or disk",
        )

    @abstractmethod
    def fixed_phases_ns(self) -> tuple[int, int]:
        """The prefill and one decode step of everything that no site's units change."""

    def kind_of(self, site: Site) -> Hashable:
        """Sites of one kind take the same time with the same units: it is worked out once for all of them."""
        return site

    def phases_ns(self, site: Site, units: IntArray, saved: IntArray | None = None) -> tuple[IntArray, IntArray]:
        """As `site_phases_ns`, or with `saved` bytes as `packed_phases_ns`; remembered."""
        key = (self.kind_of(site), units.tobytes(), b"" if saved is None else saved.tobytes())
        if (found := self._known.get(key)) is None:
            of_site = self.site_phases_ns(site, units) if saved is None else self.packed_phases_ns(site, units, saved)
            found = self._known[key] = of_site
        return found

    def site_ns(self, site: Site, units: IntArray, saved: IntArray | None = None) -> IntArray:
        """The whole request's time in `site` at each of `units` [K]; raises as `phases_ns`, and InputError for an
        endless workload."""
        return self._whole(*self.phases_ns(site, units, saved))

    def fixed_ns(self) -> int:
        """The whole request's time in what no site's units change; raises InputError for an endless workload."""
        prefill, decode = (np.array([x], dtype=np.int64) for x in self.fixed_phases_ns())
        return int(self._whole(prefill, decode)[0])

    def _whole(self, prefill: IntArray, decode: IntArray) -> IntArray:
        steps = decode_steps(self.workload)
        longest = int(prefill.max()) + steps * int(decode.max())
        if longest > MAX_NANOSECONDS:
            raise _endless(self.workload, longest / 1e9)
        whole: IntArray = prefill + steps * decode
        return whole

    def nanoseconds(self, seconds: FloatArray) -> IntArray:
        """`seconds` of any shape, rounded up; raises InputError where one phase alone takes longer than 104 days."""
        longest = float(seconds.max())
        if not math.isfinite(longest) or longest * 1e9 > MAX_NANOSECONDS:
            raise _endless(self.workload, longest)
        return np.ceil(seconds * 1e9).astype(np.int64)


def _endless(workload: Workload, seconds: float) -> InputError:
    return InputError(
        f"a request must end within {MAX_NANOSECONDS / 1e9 / 86400:.0f} days",
        values=f"batch={workload.batch}, prompt_tokens={workload.prompt_tokens}, "
        f"output_tokens={workload.output_tokens}: {seconds:.3g} seconds",
        remedy="Ask for a smaller workload, or for a faster device",
    )
