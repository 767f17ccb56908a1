"""What the predictor knows of a model, worked out by hand."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest

from pruning.anatomy.architecture import Option, Site, Sublayer
from pruning.errors import InputError
from pruning.measuring.statistics import ModelStatistics, StatisticsKind
from pruning.planning.ffn_spaces import ffn_levels, ffn_space
from pruning.planning.space import Decision, Options, Space
from tests.values.landscape import anatomy_of, sample
from values.encoding import Encoding, encode
from values.kl_floor import log_kl


def small() -> tuple[Space, Encoding]:
    """Three layers of two levels below dense; the first scanned at one level, the second at both, the third never."""
    anatomy = anatomy_of([30, 30, 60])
    space = ffn_levels(anatomy, num_levels=3, round_to=10)
    scans = [sample(anatomy, [10, 30, 60], 0.5), sample(anatomy, [30, 10, 60], 0.2), sample(anatomy, [30, 20, 60], 0.1)]
    return space, encode(anatomy, space, scans)


def test_sensitivities_are_read_from_one_layer_samples_and_gaps_are_filled() -> None:
    _, encoding = small()
    first = [log_kl(0.5), log_kl(0.5 / 4)]  # half the removed fraction, squared
    second = third = [log_kl(0.2), log_kl(0.1)]  # which is next to it
    np.testing.assert_allclose(encoding.log_sensitivity, [first, second, third], rtol=1e-5)
    assert encoding.features[:, -2:].tolist() == [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]


def test_single_cuts_at_other_widths_fill_the_gaps_too() -> None:
    anatomy = anatomy_of([30, 30])
    space = ffn_levels(anatomy, num_levels=3, round_to=10)
    encoding = encode(anatomy, space, [sample(anatomy, [15, 30], 0.08), sample(anatomy, [30, 20], 0.02)])
    scale = [log_kl(0.08 * 4), log_kl(0.02 * 9)]
    expected = [[own + 2 * math.log(p) for p in (2 / 3, 1 / 3)] for own in scale]
    np.testing.assert_allclose(encoding.log_sensitivity, expected, rtol=1e-4)
    assert encoding.features[:, -2:].tolist() == [[0.0, 0.0], [0.0, 1.0]]


def test_shape_features() -> None:
    _, encoding = small()
    assert encoding.features[:, 0].tolist() == [0.0, 0.5, 1.0]
    assert encoding.features[:, 1].tolist() == [0.75, 0.75, 1.5]  # 3 x 30 / 120, 3 x 60 / 120
    assert encoding.features[:, 2].tolist() == [0.75, 0.75, 1.5]


def test_no_scan_at_all_still_gives_a_falling_curve() -> None:
    anatomy = anatomy_of([64, 64])
    space = ffn_levels(anatomy, num_levels=4, round_to=8)
    encoding = encode(anatomy, space, [sample(anatomy, [32, 32], 0.08)])
    scale = log_kl(0.08) - math.log(2)
    expected = [scale + 2 * math.log(p) for p in (0.75, 0.5, 0.25)]
    np.testing.assert_allclose(encoding.log_sensitivity, [expected] * 2)


def test_fractions_and_shares() -> None:
    _, encoding = small()
    np.testing.assert_allclose(encoding.kept_fractions([[15, 30, 15]]), [[0.5, 1.0, 0.25]])
    np.testing.assert_allclose(encoding.parameter_shares, [0.25, 0.25, 0.5])


def test_statistics_tell_layers_apart_and_are_zero_where_there_are_none() -> None:
    anatomy = anatomy_of([64, 64, 64])
    space = ffn_levels(anatomy, num_levels=4, round_to=8)
    assert not encode(anatomy, space, []).features[:, 3:5].any()
    arrays = {"block_influence": np.array([0.1, 0.01, 0.001])}
    for layer, scale in enumerate((1.0, 10.0, 100.0)):
        arrays |= {f"layers.{layer}.ffn_variance": np.full(64, scale), f"layers.{layer}.down_norm": np.ones(64)}
    statistics = ModelStatistics(StatisticsKind.ACTIVATIONS, anatomy.fingerprint, arrays)
    features = encode(anatomy, space, [], statistics).features[:, 3:5]
    np.testing.assert_allclose(features[:, 0], -features[:, 1], atol=1e-9)  # both in even steps of a logarithm
    np.testing.assert_allclose(features[:, 1], [-math.sqrt(1.5), 0.0, math.sqrt(1.5)], rtol=1e-2, atol=1e-9)


def test_json_round_trip_is_exact() -> None:
    space, encoding = small()
    copy = Encoding.from_dict(json.loads(json.dumps(encoding.to_dict())))
    assert copy.space.document() == encoding.space.document() == space.document()
    assert np.array_equal(copy.parameters, encoding.parameters)
    assert np.array_equal(copy.features, encoding.features)
    assert np.array_equal(copy.log_sensitivity, encoding.log_sensitivity)


def test_parameters_are_those_of_each_option() -> None:
    _, encoding = small()
    assert encoding.parameters.tolist() == [[120, 240, 360], [120, 240, 360], [240, 480, 720]]
    assert (encoding.least_parameters, encoding.most_parameters) == (480, 1440)


def test_the_grid_of_earlier_predictors_is_read_as_a_space() -> None:
    """They had widths and costs, and the rounding of the widths."""
    _, encoding = small()
    document = encoding.to_dict()
    del document["space"], document["parameters"]
    document["grid"] = {
        "widths": [[10, 20, 30], [10, 20, 30], [20, 40, 60]],
        "costs": [[120, 240, 360], [120, 240, 360], [240, 480, 720]],
        "round_to": 10,
    }
    read = Encoding.from_dict(json.loads(json.dumps(document)))
    assert read.to_dict() == encoding.to_dict()
    del document["grid"]
    with pytest.raises(KeyError):
        Encoding.from_dict(document)


def of_bits() -> Space:
    site = Site(0, Sublayer.FFN)
    return Space((Decision((site,), (Options.of([Option(8, bits=4), Option(16)]),)),), {site: 16})


def of_uneven_layers() -> Space:
    sites = Site(0, Sublayer.ATTENTION), Site(0, Sublayer.FFN)
    options = Options(np.array([1, 2])), Options(np.array([8, 32]))
    return Space((Decision(sites, options),), dict(zip(sites, (2, 32), strict=True)))


@pytest.mark.parametrize(
    ("space", "found"),
    [
        (ffn_space([[32], [32]]), "with 1, 1 options"),
        (ffn_space([[16, 8, 32]]), "sites 0.ffn with 3 options"),
        (of_bits(), "sites 0.ffn with 2 options"),
        (of_uneven_layers(), "sites 0.attention, 0.ffn with 2 options"),
        (dataclasses.replace(ffn_space([[8, 16]]), dense={Site(0, Sublayer.FFN): 32}), "sites 0.ffn"),
    ],
)
def test_spaces_that_values_and_policy_cannot_learn_are_refused(space: Space, found: str) -> None:
    """Of one option, out of order, of bits, of sites that keep different parts, and that end below the dense model."""
    anatomy = anatomy_of([32] * space.num_decisions)
    with pytest.raises(InputError, match=rf"from few units to all.*{re.escape(found)}"):
        encode(anatomy, space, [])
    document = {"space": space.document(), "parameters": [], "features": [], "log_sensitivity": []}
    with pytest.raises(InputError, match=re.escape(found)):
        Encoding.from_dict(document)
