"""The one-decision scan: how much each option of each decision costs while all others are as dense as they may be.

One evaluation an option, shared by all targets of a model. It is what the additive dynamic program allocates by, and
where the surrogate table of the search starts. Where a space has more options than may be measured, some are
(`scan_choices` says which), and `values.filling` says what the others cost.
"""

from collections.abc import Callable, Mapping

import numpy as np

from pruning.allocators.evolution import Score
from pruning.arrays import FloatArray
from pruning.planning.space import Choice, Space
from values.filling import filled_table

SENSITIVITY_SOURCE = "sensitivity"
"""`source` of the samples that the scan stores."""

SCAN_BATCH = 64

MAX_SCAN_EVALUATIONS = 150
"""Of a scan that need not be complete. 32 layers with two decisions each are measured at two options each, and some at
a third."""


def scan_choices(space: Space, most: int | None = None) -> list[Choice]:
    """The top of the space, then decision by decision every other option.

    Those are more than `most`: as many, in rounds. In the first every decision takes its first option, in each later
    one the option that is furthest from all that it took, in what they keep. In the last round, which does not fit as a
    whole, decisions at even distances take part.
    """
    top = space.top
    places = [(n, k) for n in range(space.num_decisions) for k in range(top[n])]
    if most is not None and len(places) >= most:
        places = sorted(_in_rounds(space, most - 1))
    return [top] + [(*top[:n], k, *top[n + 1 :]) for n, k in places]


def _in_rounds(space: Space, most: int) -> list[tuple[int, int]]:
    """`most` pairs of a decision and one of its options below the last."""
    ladders = [_refined(amounts) for amounts in space.amounts]
    chosen: list[tuple[int, int]] = []
    for turn in range(max(len(ladder) for ladder in ladders)):
        takers = [n for n, ladder in enumerate(ladders) if turn < len(ladder)]
        left = most - len(chosen)
        if len(takers) <= left:
            chosen += [(n, ladders[n][turn]) for n in takers]
            continue
        places = np.floor((np.arange(left) + 0.5) * len(takers) / left).astype(int).tolist()
        chosen += [(takers[place], ladders[takers[place]][turn]) for place in places]
        break
    return chosen


def _refined(amounts: FloatArray) -> list[int]:
    """The options below the last, each the furthest from the last one and those before it; of equals, the first."""
    left = list(range(len(amounts) - 1))
    taken, found = [len(amounts) - 1], []
    while left:
        # Densities are no binary fractions: equal distances must be equal numbers.
        distances = [min(round(abs(float(amounts[k] - amounts[other])), 6) for other in taken) for k in left]
        best = left[int(np.argmax(distances))]
        left.remove(best)
        taken.append(best)
        found.append(best)
    return found


def scan_sensitivity(
    space: Space, score: Score, on_evaluations: Callable[[int], None] | None = None, *, most: int | None = None
) -> FloatArray:
    """The score [N, K] of each option of each decision, all others at their top; 0 where there is no such option.

    `on_evaluations` is called with the number of evaluations done so far. With `most`, of evaluations, a table that
    takes more is measured in part, and the rest is estimated.
    """
    choices = scan_choices(space, most)
    found: list[float] = []
    for start in range(0, len(choices), SCAN_BATCH):
        found += [metrics.score for metrics in score(choices[start : start + SCAN_BATCH])]
        if on_evaluations is not None:
            on_evaluations(len(found))
    return scan_table(space, dict(zip(choices, found, strict=True)))


def scan_table(space: Space, measured: Mapping[Choice, float]) -> FloatArray:
    """[N, K] of what was `measured` at the top of the space and at choices that leave it in one decision; the rest is
    estimated, from at least the choices of a scan."""
    table = np.full((space.num_decisions, int(space.counts.max())), np.nan)
    table[np.arange(space.num_decisions), space.top] = measured[space.top]
    for choice, score in measured.items():
        for n in np.flatnonzero(np.array(choice) != space.top):
            table[n, choice[n]] = score
    return filled_table(space, table)
