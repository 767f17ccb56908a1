"""The one-decision scan: how much each option of each decision costs while all others are as dense as they may be.

One evaluation an option, shared by all targets of a model. It is what the additive dynamic program allocates by, and
where the surrogate table of the search starts.
"""

from collections.abc import Callable

import numpy as np

from pruning.allocators.evolution import Score
from pruning.arrays import FloatArray
from pruning.planning.space import Choice, Space
from values.surrogate import check_evenly_spaced

SENSITIVITY_SOURCE = "sensitivity"
"""`source` of the samples that the scan stores."""

SCAN_BATCH = 64


def scan_choices(space: Space) -> list[Choice]:
    """The top of the space, then decision by decision every other option."""
    top = space.top
    return [top] + [(*top[:n], k, *top[n + 1 :]) for n in range(space.num_decisions) for k in range(top[n])]


def scan_sensitivity(space: Space, score: Score, on_evaluations: Callable[[int], None] | None = None) -> FloatArray:
    """The score [N, K] of each option of each decision, all others at their top.

    `on_evaluations` is called with the number of evaluations done so far. Raises InputError as `check_evenly_spaced`.
    """
    check_evenly_spaced(space)
    choices = scan_choices(space)
    found: list[float] = []
    for start in range(0, len(choices), SCAN_BATCH):
        found += [metrics.score for metrics in score(choices[start : start + SCAN_BATCH])]
        if on_evaluations is not None:
            on_evaluations(len(found))
    below = np.array(found[1:]).reshape(space.num_decisions, -1)
    return np.pad(below, ((0, 0), (0, 1)), constant_values=found[0])
