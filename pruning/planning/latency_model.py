"""How long a request takes on a device, layer by layer: what every source of that knowledge gives.

A request is one prefill of the whole prompt, which gives the first token, and one decode step for each further token.
The steps are all priced at the mean number of positions that they attend to: their time is linear in it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

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


def decode_steps(workload: Workload) -> int:
    """Forward passes after the prefill, which gives the first token itself."""
    return max(workload.output_tokens - 1, 0)


def mean_cache_tokens(workload: Workload) -> float:
    """Positions that a decode step attends to, its own included, averaged over the steps."""
    return workload.prompt_tokens + (max(decode_steps(workload), 1) + 1) / 2


class LatencyModel(ABC):
    """Prices one workload on one device. All times are whole nanoseconds, rounded up.

    Attributes:
        source: where the times come from.
        description: which profile or data sheet, and what is not counted: for the plan's note.
    """

    source: LatencySource
    description: str

    def __init__(self, workload: Workload) -> None:
        self.workload = workload

    @abstractmethod
    def layer_phases_ns(self, layer: int, widths: IntArray) -> tuple[IntArray, IntArray]:
        """The prefill and one decode step of `layer` at each of `widths` [N]: two [N] arrays, non-decreasing."""

    @abstractmethod
    def fixed_phases_ns(self) -> tuple[int, int]:
        """The prefill and one decode step of everything outside the decoder layers."""

    def layer_ns(self, layer: int, widths: IntArray) -> IntArray:
        """The whole request's time in `layer` at each of `widths` [N]; raises InputError for an endless workload."""
        prefill, decode = self.layer_phases_ns(layer, widths)
        return self._whole(prefill, decode)

    def fixed_ns(self) -> int:
        """The whole request's time outside of the decoder layers; raises as `layer_ns`."""
        prefill, decode = (np.array([x], dtype=np.int64) for x in self.fixed_phases_ns())
        return int(self._whole(prefill, decode)[0])

    def latency(self, widths: Sequence[int]) -> Latency:
        """A model whose FFNs have `widths` [L]; its total is the sum of `fixed_ns` and `layer_ns`."""
        prefill, decode = self.fixed_phases_ns()
        for layer, width in enumerate(widths):
            more_prefill, more_decode = self.layer_phases_ns(layer, np.array([width], dtype=np.int64))
            prefill, decode = prefill + int(more_prefill[0]), decode + int(more_decode[0])
        total = prefill + decode_steps(self.workload) * decode
        return Latency(prefill_ms=prefill / 1e6, decode_ms_per_token=decode / 1e6, total_ms=total / 1e6)

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
