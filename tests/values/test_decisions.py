"""What values and policy know of decisions over KV groups, skips and whole layers, beside FFN widths."""

import math

import numpy as np
import pytest

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import DENSE, Architecture, Option, Site, Sublayer
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.errors import InputError
from pruning.measuring.metrics import Metrics
from pruning.planning.axis_spaces import SpaceName, coarse_space
from pruning.planning.space import Space
from storage.records import Sample
from tests.tiny_models import save_tiny_checkpoint
from values.basis import Basis
from values.decisions import padded, units_in
from values.encoding import Encoding, encode

ATTENTION, FFN = Sublayer.ATTENTION, Sublayer.FFN


@pytest.fixture(scope="module")
def anatomy(tmp_path_factory: pytest.TempPathFactory) -> ModelAnatomy:
    """Of real tensors: made-up ones have no attention that could be cut."""
    return read_anatomy(save_tiny_checkpoint(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def joint(anatomy: ModelAnatomy) -> Space:
    return coarse_space(anatomy, SpaceName.ALL, num_levels=4)


def sample(architecture: Architecture, kl: float) -> Sample:
    return Sample("m", "r" * 64, "c" * 64, architecture, Metrics(kl, 1.0, 0.5, 100, 50), 0.1, "test")


def scan(space: Space) -> list[Sample]:
    """Every option of every decision alone: KL by the removed fraction, dearer in later decisions."""
    found = [sample(DENSE, 0.0)]
    for n, row in enumerate(space.units):
        for k in range(len(row) - 1):
            choice = (*space.top[:n], k, *space.top[n + 1 :])
            removed = 1.0 - row[k] / space.dense_units[n]
            found.append(sample(space.architecture(choice), 0.1 * (n + 1) * removed**2))
    return found


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, "all"),
        ({Site(1, ATTENTION): Option(0)}, {Site(1, ATTENTION): 0}),
        ({Site(1, FFN): Option(0), Site(2, FFN): Option(5)}, {Site(1, FFN): 0, Site(2, FFN): 5}),
        ({Site(0, FFN): Option(0)}, None),  # the first layer keeps something
        ({Site(0, FFN): Option(16, bits=4)}, None),
        ({Site(5, FFN): Option(16)}, None),
    ],
)
def test_units_of_what_a_space_decides(
    joint: Space, options: dict[Site, Option], kept: dict[Site, int] | str | None
) -> None:
    space = joint
    found = units_in(space, Architecture.of(options))
    if kept is None:
        assert found is None
        return
    assert found is not None
    units = dict(zip((decision.sites[0] for decision in space.decisions), found, strict=True))
    dense = {site: space.dense[site] for site in units}
    assert units == dense | (kept if isinstance(kept, dict) else {})


def test_sites_that_are_decided_together_go_together(anatomy: ModelAnatomy) -> None:
    space = coarse_space(anatomy, SpaceName.LAYERS)
    gone = {Site(1, ATTENTION): Option(0), Site(1, FFN): Option(0)}
    groups = anatomy.layers[0].num_kv_groups
    assert units_in(space, Architecture.of(gone)) == (0, groups, groups)
    assert units_in(space, Architecture.of({Site(1, FFN): Option(0)})) is None
    assert units_in(space, DENSE) == (groups, groups, groups)


def test_decisions_of_fewer_options_repeat_their_last_one(anatomy: ModelAnatomy, joint: Space) -> None:
    assert padded([np.array([0, 1]), np.array([2, 4, 8])]).tolist() == [[0, 1, 1], [2, 4, 8]]
    space = joint
    encoding = encode(anatomy, space, scan(space))
    assert encoding.units.shape == (space.num_decisions, space.counts.max())
    assert (encoding.fractions[np.arange(space.num_decisions), space.top] == 1.0).all()
    assert encoding.parameter_shares.sum() == pytest.approx(1.0)
    assert Encoding.from_dict(encoding.to_dict()).to_dict() == encoding.to_dict()


def test_own_kl_is_what_was_measured_at_every_option_and_runs_to_nothing_at_the_dense_one(
    anatomy: ModelAnatomy, joint: Space
) -> None:
    space = joint
    basis = Basis(encode(anatomy, space, scan(space)))
    for n, row in enumerate(space.units):
        for k, units in enumerate(row):
            fractions = np.ones((1, space.num_decisions))
            fractions[0, n] = removed = units / space.dense_units[n]
            own = basis.own_kl(fractions)[0]
            expected = 0.1 * (n + 1) * (1.0 - removed) ** 2
            assert own[n] == pytest.approx(expected, abs=2e-6), (n, k)
            assert np.delete(own, n) == pytest.approx(0.0, abs=1e-12)
    halfway = np.ones((2, space.num_decisions))
    first, second = space.units[3][:2] / space.dense_units[3]
    halfway[:, 3] = [0.5 * (first + second), first]
    between, skipped = basis.own_kl(halfway)[:, 3]
    assert 0.0 < between < skipped
    assert np.isfinite(basis.places(halfway)).all()


def test_what_was_not_measured_is_filled_in_by_kind(anatomy: ModelAnatomy, joint: Space) -> None:
    space = joint
    everything = scan(space)
    partly = [s for s in everything if Site(2, FFN) not in s.architecture.options]
    encoding = encode(anatomy, space, partly)
    n = next(n for n, decision in enumerate(space.decisions) if decision.sites == (Site(2, FFN),))
    found = np.exp(encoding.log_sensitivity[n, : space.top[n]])
    assert np.isfinite(found).all()
    assert (np.diff(found) < 0).all()  # the more is kept, the less it costs
    assert encoding.features[n, -(space.counts.max() - 1) :].sum() == 0.0  # none of it was measured
    no_attention = [s for s in everything if all(site.sublayer is FFN for site in s.architecture.options)]
    with pytest.raises(InputError, match=r"samples of single cuts.*one attention alone.*--method mcts"):
        encode(anatomy, space, no_attention)


def test_a_space_of_ffn_widths_counts_ffn_parameters(anatomy: ModelAnatomy) -> None:
    """In FFN parameters, and each width as it was measured."""
    space = coarse_space(anatomy, SpaceName.FFN, num_levels=4)
    encoding = encode(anatomy, space, scan(space))
    assert encoding.units.tolist() == [row.tolist() for row in space.units]
    assert encoding.parameters[:, -1].sum() == anatomy.ffn_parameters
    removed = 1.0 - space.units[0][0] / space.dense_units[0]
    assert encoding.log_sensitivity[0, 0] == math.log(0.1 * removed**2 + 1e-6)
