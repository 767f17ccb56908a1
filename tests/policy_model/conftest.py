"""A small model, its samples, and a predictor trained on them in a second or two."""

import pytest
import torch

from policy_model.predictor import Predictor
from policy_model.training import TrainingSettings, train_predictor
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.planning.levels import LevelGrid
from storage.records import Sample
from tests.values.landscape import anatomy_of, samples_of

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def anatomy() -> ModelAnatomy:
    return anatomy_of([64] * 6)


@pytest.fixture(scope="session")
def grid(anatomy: ModelAnatomy) -> LevelGrid:
    return LevelGrid.build(anatomy, num_levels=4, round_to=8)


@pytest.fixture(scope="session")
def samples(anatomy: ModelAnatomy, grid: LevelGrid) -> list[Sample]:
    return samples_of(anatomy, grid)


@pytest.fixture(scope="session")
def settings() -> TrainingSettings:
    return TrainingSettings(
        num_levels=4,
        round_to=8,
        seed=3,
        policy_rounds=2,
        policy_steps_per_round=30,
        experts_per_round=24,
        batch_size=32,
        policy_width=32,
        policy_blocks=2,
        checkpoint_every_steps=5,
    )


@pytest.fixture(scope="session")
def predictor(anatomy: ModelAnatomy, samples: list[Sample], settings: TrainingSettings) -> Predictor:
    return train_predictor(anatomy, samples, settings)
