"""What every allocator is given: a model, the widths it may choose from, and an integer budget."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pruning.anatomy import ModelAnatomy
from pruning.levels import LevelGrid

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class AllocationProblem:
    """One request to an allocator.

    Attributes:
        anatomy: the dense model.
        grid: widths [L][K] for the allocators that choose among levels; its `round_to` holds for all of them.
        budget: FFN parameters that may be kept.
        sensitivity: [L, K] cost of layer l at level k while every other layer is dense, or None if not measured.
    """

    anatomy: ModelAnatomy
    grid: LevelGrid
    budget: int
    sensitivity: FloatArray | None = None
