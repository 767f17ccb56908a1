"""What each space may change, that none can skip a whole model, and what decoder parameters it can reach."""

from pathlib import Path

import numpy as np
import pytest

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.checkpoints.anatomy_reader import anatomy_of
from pruning.errors import InfeasibleBudgetError, InputError
from pruning.planning.axis_spaces import SpaceName, coarse_space
from pruning.planning.ffn_spaces import ffn_levels
from pruning.planning.prices import parameters
from pruning.planning.space import Space
from pruning.planning.target import decoder_parameter_limits, least_decoder_parameters
from tests.pruning.made_up import made_up_anatomy
from tests.tiny_models import tiny_model

ATTENTION, FFN = Sublayer.ATTENTION, Sublayer.FFN


def ladders(space: Space) -> list[tuple[tuple[Site, ...], list[list[int]]]]:
    return [(x.sites, [options.units.tolist() for options in x.options]) for x in space.decisions]


def test_ffn_is_what_it_always_was(anatomy: ModelAnatomy) -> None:
    found = coarse_space(anatomy, SpaceName.FFN, num_levels=3)
    assert found.document() == ffn_levels(anatomy, num_levels=3).document()


def test_attention_goes_down_to_nothing_but_in_the_first_layer(anatomy: ModelAnatomy) -> None:
    assert ladders(coarse_space(anatomy, SpaceName.ATTENTION)) == [
        ((Site(layer, ATTENTION),), [[0, 1, 2][layer == 0 :]]) for layer in range(4)
    ]


def test_layers_are_there_or_not(anatomy: ModelAnatomy) -> None:
    assert ladders(coarse_space(anatomy, SpaceName.LAYERS)) == [
        ((Site(layer, ATTENTION), Site(layer, FFN)), [[0, 2], [0, 48]]) for layer in (1, 2, 3)
    ]


def test_all_has_a_decision_a_site(anatomy: ModelAnatomy) -> None:
    space = coarse_space(anatomy, SpaceName.ALL, num_levels=3)
    expected = []
    for layer in range(4):
        expected.append(((Site(layer, ATTENTION),), [[0, 1, 2][layer == 0 :]]))
        expected.append(((Site(layer, FFN),), [[0, 16, 32, 48][layer == 0 :]]))
    assert ladders(space) == expected
    assert Space.from_document(space.document()).document() == space.document()


def test_many_groups_are_taken_in_levels() -> None:
    anatomy = made_up_anatomy([64, 64], num_heads=12, num_kv_groups=12)
    space = coarse_space(anatomy, SpaceName.ATTENTION, num_levels=4)
    assert ladders(space) == [((Site(0, ATTENTION),), [[3, 6, 9, 12]]), ((Site(1, ATTENTION),), [[0, 3, 6, 9, 12]])]
    odd = coarse_space(anatomy, SpaceName.ATTENTION, num_levels=8).units[1]
    assert odd.tolist() == [0, 2, 3, 5, 6, 8, 9, 11, 12]


def test_what_cannot_be_decided_is_no_decision() -> None:
    anatomy = anatomy_of(tiny_model("paligemma-mqa"))  # one group a layer
    sites = [x.sites[0] for x in coarse_space(anatomy, SpaceName.ALL, num_levels=3).decisions]
    assert Site(0, ATTENTION) not in sites
    assert Site(0, FFN) in sites
    assert len(sites) == 7


def test_one_layer_cannot_go() -> None:
    with pytest.raises(InputError, match="may be cut or skipped"):
        coarse_space(made_up_anatomy([64]), SpaceName.LAYERS)


@pytest.mark.parametrize("name", SpaceName)
def test_the_cheapest_choice_is_a_model(name: SpaceName, anatomy: ModelAnatomy) -> None:
    space = coarse_space(anatomy, name, num_levels=3)
    architecture = space.architecture(space.bottom)
    widths, groups = anatomy.ffn_widths(architecture), anatomy.kv_groups(architecture)
    assert widths[0] > 0
    assert groups[0] > 0
    dense = space.architecture(space.top)
    assert dense == Architecture()


@pytest.mark.parametrize("name", [SpaceName.ATTENTION, SpaceName.LAYERS, SpaceName.ALL])
def test_limits_count_the_decoders_parameters(name: SpaceName, anatomy: ModelAnatomy) -> None:
    space = coarse_space(anatomy, name, num_levels=3)
    outside = anatomy.total_parameters - anatomy.decoder_parameters
    least = least_decoder_parameters(anatomy, space)
    rng = np.random.default_rng(0)
    for _ in range(50):
        most = int(rng.integers(least, anatomy.decoder_parameters + 1))
        limits = decoder_parameter_limits(anatomy, space, most)
        drawn = tuple(int(rng.integers(k)) for k in space.counts)
        choice = limits.fit(drawn, np.zeros(limits.table.exists.shape))
        assert parameters(anatomy).cost(space.architecture(choice)) - outside <= most
    with pytest.raises(InfeasibleBudgetError):
        decoder_parameter_limits(anatomy, space, least - 1)


def test_a_skipped_layer_costs_nothing(checkpoint: Path, anatomy: ModelAnatomy) -> None:
    space = coarse_space(anatomy, SpaceName.LAYERS)
    first, *_, last = anatomy.layers
    assert least_decoder_parameters(anatomy, space) == first.parameters
    gone = Architecture.of({Site(last.index, ATTENTION): Option(0), Site(last.index, FFN): Option(0)})
    assert space.architecture((1, 1, 0)) == gone
