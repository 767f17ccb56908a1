"""From the passes that were timed to tables in which no time falls while a layer keeps more or the length grows."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from scipy.optimize import isotonic_regression

from pruning.arrays import FloatArray
from pruning.devices.tables import AttentionTable, LayerShape, LayerTable
from pruning.devices.timing.ladder import LadderPlan, Rung
from pruning.devices.timing.stopwatch import PassTimes

SHORTEST_MS = 1e-6


@dataclass(frozen=True)
class LadderTimes:
    """The ladder along the lengths P: a time a rung [P][R], ascending; what the passes took beyond them [P]; the most
    that a rung was moved, as a fraction of it; and how much longer later passes took than earlier ones (`drift_of`).
    """

    rungs_ms: tuple[tuple[float, ...], ...]
    outside_ms: tuple[float, ...]
    smoothing: float
    drift: float

    @classmethod
    def of(cls, passes: Sequence[Sequence[PassTimes]], plan: LadderPlan) -> "LadderTimes":
        """From the `passes` of each length [P], ascending.

        Rungs are medians over passes and over the layers that keep as much. They are made non-decreasing along the
        ladder, then along the lengths, which keeps the former: isotonic regression keeps the order of its inputs. The
        rest is what the rungs leave of the whole pass, so that layers and rest add up to what was measured, made
        non-decreasing along the lengths too.
        """
        raw = np.array([_medians(one, plan) for one in passes])  # [P, R]
        along_ladder = np.array([isotonic_regression(row).x for row in raw])
        fit: FloatArray = np.array([isotonic_regression(column).x for column in along_ladder.T]).T
        fit = np.maximum.accumulate(fit, axis=1)  # means of equal times may differ in their last digit
        times = [dict(zip(plan.ladder, row, strict=True)) for row in fit]
        outside = [
            median(x.total_ms for x in one) - float(sum(by_rung[rung] for rung in plan.rungs))
            for one, by_rung in zip(passes, times, strict=True)
        ]
        return cls(
            rungs_ms=tuple(tuple(map(float, row)) for row in fit),
            outside_ms=tuple(map(float, isotonic_regression([max(x, SHORTEST_MS) for x in outside]).x)),
            smoothing=float(np.max(np.abs(fit - raw) / raw)),
            drift=drift_of(passes),
        )


def drift_of(passes: Sequence[Sequence[PassTimes]]) -> float:
    """How much longer the later half of the `passes` of each length [P] took than the earlier half, as a fraction.

    Of medians; the median over the lengths. Passes are in the order in which they ran; 0 where a length has one alone.
    """
    found = []
    for one in passes:
        totals, half = [x.total_ms for x in one], len(one) // 2
        found.append(median(totals[-half:]) / median(totals[:half]) - 1.0 if half else 0.0)
    return median(found)


def layer_table(
    shape: LayerShape,
    batch: int,
    lengths: Sequence[int],
    plan: LadderPlan,
    prefill: LadderTimes,
    decode: LadderTimes,
) -> LayerTable:
    """What was measured of a layer, at prompts of `lengths` [P] and one position behind each."""
    return LayerTable(
        shape=shape,
        batch=batch,
        ffn_widths=tuple(rung.ffn_width for rung in plan.ladder if rung.ffn_width),
        prompt_tokens=tuple(lengths),
        cache_tokens=tuple(length + 1 for length in lengths),
        prefill_ms=_rows(prefill, plan, with_ffn=True),
        decode_ms=_rows(decode, plan, with_ffn=True),
        smoothing=max(prefill.smoothing, decode.smoothing),
        drift=max(prefill.drift, decode.drift, key=abs),
        attention=AttentionTable(
            kv_groups=tuple(rung.kv_groups for rung in plan.ladder if not rung.ffn_width),
            prefill_ms=_rows(prefill, plan, with_ffn=False),
            decode_ms=_rows(decode, plan, with_ffn=False),
        ),
    )


def _rows(times: LadderTimes, plan: LadderPlan, *, with_ffn: bool) -> tuple[tuple[float, ...], ...]:
    """[P] the times of the rungs that have an FFN, or of those that have none."""
    places = [index for index, rung in enumerate(plan.ladder) if (rung.ffn_width > 0) is with_ffn]
    return tuple(tuple(row[place] for place in places) for row in times.rungs_ms)


def _medians(passes: Sequence[PassTimes], plan: LadderPlan) -> list[float]:
    """[R] of each rung, ascending; the first layer only warms up."""
    samples: dict[Rung, list[float]] = defaultdict(list)
    for one in passes:
        for rung, layer_ms in zip(plan.rungs[1:], one.layers_ms[1:], strict=True):
            samples[rung].append(layer_ms)
    return [max(median(samples[rung]), SHORTEST_MS) for rung in plan.ladder]
