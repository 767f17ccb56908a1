"""Samples as training examples: what is refused, what does not matter, and the frontier."""

import dataclasses
import hashlib
from typing import Any

import numpy as np
import pytest

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.errors import InputError
from pruning.measuring.metrics import Metrics
from pruning.planning.ffn_spaces import ffn_levels
from pruning.planning.space import Space
from storage.records import Sample
from tests.values.landscape import sample, with_shares
from values.dataset import check_samples, frontier, samples_sha256, training_data
from values.encoding import encode


def test_too_few_samples_name_the_command_that_adds_some(anatomy: ModelAnatomy, samples: list[Sample]) -> None:
    with pytest.raises(InputError, match=r"at least 64 samples.*got 40 samples.*lop search"):
        check_samples(ffn_levels(anatomy), samples[-40:])


def test_scans_alone_are_too_few(anatomy: ModelAnatomy) -> None:
    scans = [sample(anatomy, [64] * i + [w] + [64] * (5 - i)) for i in range(6) for w in range(8, 64, 4)]
    with pytest.raises(InputError, match="84 samples, 0 of them prune two layers or more"):
        check_samples(ffn_levels(anatomy), scans)


@pytest.mark.parametrize("field", ["model_id", "ranking_sha256", "calibration_id", "protocol"])
def test_mixed_conditions_are_refused(anatomy: ModelAnatomy, samples: list[Sample], field: str) -> None:
    changed: dict[str, Any] = {field: "other"}
    other = dataclasses.replace(samples[0], **changed)
    with pytest.raises(InputError, match=f"share one {field}"):
        check_samples(ffn_levels(anatomy), [*samples, other])


@pytest.mark.parametrize(
    ("site", "option"),
    [
        (Site(6, Sublayer.FFN), Option(8)),
        (Site(0, Sublayer.FFN), Option(0)),
        (Site(0, Sublayer.FFN), Option(65)),
        (Site(0, Sublayer.FFN), Option(8, bits=4)),
        (Site(0, Sublayer.ATTENTION), Option(1)),
    ],
)
def test_what_changes_more_than_widths_of_this_model_is_left_out(
    anatomy: ModelAnatomy, samples: list[Sample], site: Site, option: Option, caplog: pytest.LogCaptureFixture
) -> None:
    foreign = dataclasses.replace(samples[0], architecture=Architecture.of({site: option}))
    assert check_samples(ffn_levels(anatomy), [foreign, *samples]) == check_samples(ffn_levels(anatomy), samples)
    (message,) = caplog.messages
    assert message.startswith(f"1 of {len(samples) + 1} samples are left out of the training: they change more than")
    assert str(foreign.architecture.document()) in message


@pytest.mark.parametrize("kl", [float("nan"), float("inf"), -0.1])
def test_impossible_kl_is_refused(anatomy: ModelAnatomy, samples: list[Sample], kl: float) -> None:
    with pytest.raises(InputError, match="KL must be a finite number"):
        check_samples(ffn_levels(anatomy), [*samples, sample(anatomy, [8, 8, 8, 8, 8, 8], kl)])


def test_order_and_repetition_do_not_matter(anatomy: ModelAnatomy, samples: list[Sample]) -> None:
    once = check_samples(ffn_levels(anatomy), samples)
    again = check_samples(ffn_levels(anatomy), [*reversed(samples), *samples[:5]])
    assert [s.architecture for s in once] == [s.architecture for s in again]
    assert samples_sha256(ffn_levels(anatomy), once) == samples_sha256(ffn_levels(anatomy), list(reversed(again)))
    assert samples_sha256(ffn_levels(anatomy), once) != samples_sha256(ffn_levels(anatomy), once[1:])


def test_frontier_by_hand() -> None:
    retention, values = np.array([0.4, 0.5]), np.array([-1.0, -3.0])
    at = np.array([0.4, 0.47, 0.5, 0.9, 0.2])
    # 0.47 is one bandwidth below 0.5; 0.2 is 6.67 and 10 bandwidths below.
    expected = np.array([-1.0, -2.0, -3.0, -3.0, -1.0 + (0.2 / 0.03) ** 2])
    np.testing.assert_allclose(frontier(retention, values, at), expected)


def test_arrays_of_samples(anatomy: ModelAnatomy, space: Space, samples: list[Sample]) -> None:
    chosen = [sample(anatomy, [64] * 6, 0.0), sample(anatomy, [16, 64, 64, 64, 64, 32]), sample(anatomy, [20] * 6)]
    data = training_data(encode(anatomy, space, samples), chosen)
    assert data.levels.tolist() == [[3] * 6, [0, 3, 3, 3, 3, 1], [-1] * 6]
    assert data.on_grid.tolist() == [True, True, False]
    assert data.searched.tolist() == [False, True, True]
    np.testing.assert_allclose(data.retention, [1.0, 304 / 384, 120 / 384])
    assert data.accuracy.tolist() == [0.5, 0.5, 0.5]
    assert np.isnan(data.agreement).all()
    assert (data.gap >= 0.0).all()
    assert data.imitation_weights(0.1)[2] == 0.0


def test_agreement_counts_where_it_was_measured(anatomy: ModelAnatomy, space: Space, samples: list[Sample]) -> None:
    chosen = [*with_shares(samples[:1], accuracy=1.0), samples[1]]
    data = training_data(encode(anatomy, space, samples), chosen)
    assert data.agreement[0] == chosen[0].metrics.agreement
    assert np.isnan(data.agreement[1])
    assert samples_sha256(ffn_levels(anatomy), chosen) != samples_sha256(
        ffn_levels(anatomy), [dataclasses.replace(chosen[0], metrics=without(chosen[0])), samples[1]]
    )


def test_the_content_of_samples_without_agreement_is_what_it_always_was(anatomy: ModelAnatomy) -> None:
    rows = [sample(anatomy, [64] * 6, 0.25), sample(anatomy, [8] * 6, 0.5)]
    written = "[[[8, 8, 8, 8, 8, 8], 0.5, 1.5, 0.5], [[64, 64, 64, 64, 64, 64], 0.25, 1.25, 0.5]]"
    assert samples_sha256(ffn_levels(anatomy), rows) == hashlib.sha256(written.encode()).hexdigest()


def test_exact_match_tells_something_where_the_dense_model_has_any(
    anatomy: ModelAnatomy, space: Space, samples: list[Sample]
) -> None:
    def tells(*chosen: Sample) -> bool:
        return training_data(encode(anatomy, space, samples), list(chosen)).exact_match_tells

    (dense,) = with_shares([sample(anatomy, [64] * 6, 0.0)], accuracy=0.0)
    assert tells(sample(anatomy, [64] * 6, 0.0), *with_shares(samples[:3], accuracy=0.0))
    assert not tells(dense, samples[0])  # by chance alone
    assert tells(samples[0], *with_shares(samples[1:3], accuracy=0.0))
    assert not tells(*with_shares(samples[:3], accuracy=0.0))


def without(sample: Sample) -> Metrics:
    return dataclasses.replace(sample.metrics, agreement=None)
