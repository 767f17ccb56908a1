"""A predictor trained on the samples of the small model in a second or two."""

import pytest
import torch

from policy_model.predictor import Predictor
from policy_model.training import TrainingSettings, train_predictor
from pruning.anatomy.anatomy import ModelAnatomy
from storage.records import Sample
from tests.values.conftest import anatomy, samples, space

__all__ = ["anatomy", "predictor", "samples", "settings", "space"]
"""Fixtures, those of the values among them."""

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def settings() -> TrainingSettings:
    return TrainingSettings(
        num_levels=4,
        round_to=8,
        seed=3,
        policy_rounds=2,
        policy_steps_per_round=60,
        problems_per_round=192,
        batch_size=32,
        policy_width=32,
        policy_blocks=1,
        checkpoint_every_steps=5,
    )


@pytest.fixture(scope="session")
def predictor(anatomy: ModelAnatomy, samples: list[Sample], settings: TrainingSettings) -> Predictor:
    return train_predictor(anatomy, samples, settings)
