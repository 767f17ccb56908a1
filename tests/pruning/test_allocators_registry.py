"""Allocators by name."""

import numpy as np
import pytest

from pruning.allocators import ALLOCATORS, AllocationProblem, get_allocator
from pruning.anatomy import DecoderLayer, ModelAnatomy
from pruning.errors import InputError, NotFoundError
from pruning.levels import LevelGrid


def make_problem(sensitivity: np.ndarray | None) -> AllocationProblem:
    layers = tuple(DecoderLayer(i, 32, 4, 2, 8, 3, 200) for i in range(2))
    anatomy = ModelAnatomy("llava", "llama", 32, 50, layers, 400, "F32", "0" * 64)
    return AllocationProblem(anatomy, LevelGrid.build(anatomy, num_levels=4, round_to=8), 96, sensitivity)


def test_every_allocator_keeps_the_budget() -> None:
    problem = make_problem(np.array([[9.0, 1.0, 0.5, 0.0], [0.2, 0.1, 0.1, 0.0]]))
    widths = {name: allocator.allocate(problem) for name, allocator in ALLOCATORS.items()}
    # 32 channels in all: (8, 24) = 9.1, (16, 16) = 1.1, (24, 8) = 0.7.
    assert widths == {"uniform": [16, 16], "additive-dp": [24, 8]}


def test_missing_sensitivity() -> None:
    assert get_allocator("additive-dp").needs_sensitivity
    with pytest.raises(InputError, match="needs the one-layer sensitivities"):
        get_allocator("additive-dp").allocate(make_problem(None))


def test_unknown_name() -> None:
    with pytest.raises(NotFoundError, match="uniform, additive-dp"):
        get_allocator("magic")
