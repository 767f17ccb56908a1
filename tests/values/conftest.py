"""The model, the samples and the predictor of tests/policy_model, which these tests judge by."""

from tests.policy_model.conftest import anatomy, grid, predictor, samples, settings

__all__ = ["anatomy", "grid", "predictor", "samples", "settings"]
