"""From the passes that were timed to a table in which no time falls while the width or the length grows."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from scipy.optimize import isotonic_regression

from pruning.arrays import FloatArray
from pruning.devices.timing.ladder import LadderPlan
from pruning.devices.timing.stopwatch import PassTimes

SHORTEST_MS = 1e-6


@dataclass(frozen=True)
class LadderTimes:
    """The ladder along the lengths P: a time a rung [P][W], what the passes took beyond them [P], and the most that a
    rung was moved, as a fraction of it.
    """

    rungs_ms: tuple[tuple[float, ...], ...]
    outside_ms: tuple[float, ...]
    smoothing: float

    @classmethod
    def of(cls, passes: Sequence[Sequence[PassTimes]], plan: LadderPlan) -> "LadderTimes":
        """From the `passes` of each length [P], ascending.

        Rungs are medians over passes and over the layers of that width. They are made non-decreasing along the widths,
        then along the lengths, which keeps the former: isotonic regression keeps the order of its inputs. The rest is
        what the rungs leave of the whole pass, so that layers and rest add up to what was measured, made non-decreasing
        along the lengths too.
        """
        raw = np.array([_medians(one, plan) for one in passes])  # [P, W]
        along_widths = np.array([isotonic_regression(row).x for row in raw])
        fit: FloatArray = np.array([isotonic_regression(column).x for column in along_widths.T]).T
        widths = sorted(set(plan.widths[1:]))
        times = [dict(zip(widths, row, strict=True)) for row in fit]
        outside = [
            median(x.total_ms for x in one) - float(sum(by_width[width] for width in plan.widths))
            for one, by_width in zip(passes, times, strict=True)
        ]
        return cls(
            rungs_ms=tuple(tuple(map(float, row)) for row in fit),
            outside_ms=tuple(map(float, isotonic_regression([max(x, SHORTEST_MS) for x in outside]).x)),
            smoothing=float(np.max(np.abs(fit - raw) / raw)),
        )


def _medians(passes: Sequence[PassTimes], plan: LadderPlan) -> list[float]:
    """[W] of each rung; the first layer only warms up."""
    samples: dict[int, list[float]] = defaultdict(list)
    for one in passes:
        for width, layer_ms in zip(plan.widths[1:], one.layers_ms[1:], strict=True):
            samples[width].append(layer_ms)
    return [max(median(samples[width]), SHORTEST_MS) for width in sorted(samples)]
