"""A small model, the space that was searched, and its samples."""

import pytest

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.planning.ffn_spaces import ffn_levels
from pruning.planning.space import Space
from storage.records import Sample
from tests.values.landscape import anatomy_of, samples_of


@pytest.fixture(scope="session")
def anatomy() -> ModelAnatomy:
    return anatomy_of([64] * 6)


@pytest.fixture(scope="session")
def space(anatomy: ModelAnatomy) -> Space:
    return ffn_levels(anatomy, num_levels=4, round_to=8)


@pytest.fixture(scope="session")
def samples(anatomy: ModelAnatomy, space: Space) -> list[Sample]:
    return samples_of(anatomy, space)
