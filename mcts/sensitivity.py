"""The one-layer scan: how much each level of each layer costs while every other layer is dense.

L (K - 1) + 1 evaluations, shared by all targets of a model. It is what the additive dynamic program allocates by, and
where the surrogate table of the search starts.
"""

from collections.abc import Callable

import numpy as np

from pruning.arrays import FloatArray
from pruning.measuring.metrics import EvaluateWidths
from pruning.planning.levels import Configuration, LevelGrid

SENSITIVITY_SOURCE = "sensitivity"
"""`source` of the samples that the scan stores."""

SCAN_BATCH = 64


def scan_configurations(grid: LevelGrid) -> list[Configuration]:
    """The dense configuration, then layer by layer every lower level: L (K - 1) + 1 configurations."""
    dense = (grid.num_levels,) * grid.num_layers
    return [dense] + [
        (*dense[:layer], level, *dense[layer + 1 :])
        for layer in range(grid.num_layers)
        for level in range(1, grid.num_levels)
    ]


def scan_sensitivity(
    grid: LevelGrid, evaluate: EvaluateWidths, on_evaluations: Callable[[int], None] | None = None
) -> FloatArray:
    """KL to dense [L, K] of each level of each layer, all other layers dense; column K is the dense model's own.

    `on_evaluations` is called with the number of evaluations done so far.
    """
    configurations = scan_configurations(grid)
    kl: list[float] = []
    for start in range(0, len(configurations), SCAN_BATCH):
        chunk = configurations[start : start + SCAN_BATCH]
        kl += [m.kl for m in evaluate([tuple(grid.widths_of(c)) for c in chunk])]
        if on_evaluations is not None:
            on_evaluations(len(kl))
    table = np.empty((grid.num_layers, grid.num_levels))
    table[:, -1] = kl[0]
    table[:, :-1] = np.reshape(kl[1:], (grid.num_layers, grid.num_levels - 1))
    return table
