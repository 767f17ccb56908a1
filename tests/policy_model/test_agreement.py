"""Agreement as the predictor expects it: of samples that have it, beside an exact match that may say nothing."""

import dataclasses
import json
import math

import pytest

from policy_model.predictor import Predictor
from policy_model.training import TrainingSettings, train_predictor
from pruning.anatomy.anatomy import ModelAnatomy
from storage.records import Sample
from tests.policy_model.test_predictor import limits_of
from tests.values.landscape import true_kl, with_shares


@pytest.fixture(scope="module")
def quick(settings: TrainingSettings) -> TrainingSettings:
    return dataclasses.replace(settings, policy_rounds=1, policy_steps_per_round=5, problems_per_round=8)


@pytest.fixture(scope="module")
def short(anatomy: ModelAnatomy, samples: list[Sample], quick: TrainingSettings) -> Predictor:
    """Of answers that the dense model gives exactly."""
    return train_predictor(anatomy, with_shares(samples, accuracy=0.9), quick)


@pytest.fixture(scope="module")
def long(anatomy: ModelAnatomy, samples: list[Sample], quick: TrainingSettings) -> Predictor:
    """Of answers that it does not."""
    return train_predictor(anatomy, with_shares(samples, accuracy=0.0), quick)


@pytest.mark.parametrize("sparsity", [0.3, 0.4, 0.5, 0.6])
def test_agreement_is_predicted_near_the_truth(short: Predictor, anatomy: ModelAnatomy, sparsity: float) -> None:
    plan = short.plan(anatomy, limits_of(anatomy, int((1 - sparsity) * anatomy.ffn_parameters)))
    truth = math.exp(-2.0 * true_kl(anatomy, anatomy.ffn_widths(plan.architecture)))
    assert plan.agreement == pytest.approx(truth, abs=0.02)
    assert plan.agreement is not None
    assert plan.agreement_interval is not None
    low, high = plan.agreement_interval
    assert 0.0 <= low <= plan.agreement <= high <= 1.0
    assert plan.accuracy == pytest.approx(0.9 * truth**3, abs=0.05)
    assert short.judge(plan.architecture).agreement == plan.agreement


def test_the_dense_model_agrees_with_itself(short: Predictor, anatomy: ModelAnatomy) -> None:
    dense = short.plan(anatomy, limits_of(anatomy, anatomy.ffn_parameters))
    assert (dense.agreement, dense.agreement_interval) == (1.0, (1.0, 1.0))


def test_of_long_answers_agreement_alone_is_predicted(long: Predictor, anatomy: ModelAnatomy) -> None:
    plan = long.plan(anatomy, limits_of(anatomy, 2500))
    assert (plan.accuracy, plan.accuracy_interval) == (None, None)
    assert plan.agreement is not None
    of_policy = {"policy_error_nats", "policy_excess_log_kl", "num_problems"}
    assert set(long.metrics) == {"value_error_log_kl", "agreement_error"} | of_policy


def test_without_agreement_in_the_samples_nothing_is_said_of_it(predictor: Predictor, anatomy: ModelAnatomy) -> None:
    for prediction in (
        predictor.plan(anatomy, limits_of(anatomy, 2500)),
        predictor.plan(anatomy, limits_of(anatomy, anatomy.ffn_parameters)),
    ):
        assert (prediction.agreement, prediction.agreement_interval) == (None, None)
        assert prediction.accuracy is not None
    _, config = predictor.to_bytes()
    assert set(config["calibration"]) == {
        "plan", "sample", "plan_accuracy", "sample_accuracy", "curve", "coverage",
    }  # fmt: skip
    assert "agreement_error" not in predictor.metrics


def test_it_is_stored_and_read_back(short: Predictor, long: Predictor, anatomy: ModelAnatomy) -> None:
    for made in (short, long):
        weights, config = made.to_bytes()
        read = Predictor.from_bytes(weights, json.loads(json.dumps(config)))
        limits = limits_of(anatomy, 2500)
        assert read.plan(anatomy, limits) == made.plan(anatomy, limits)
    assert short.metrics["agreement_error"] < 0.05
