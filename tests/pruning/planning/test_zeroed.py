"""How many weights densities set to zero, counted from the anatomy alone."""

import pytest

from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.checkpoints.anatomy_reader import anatomy_of
from pruning.cutting.rewriting.blocks import language_blocks
from pruning.errors import InputError
from pruning.planning.cost import achieved_costs
from pruning.planning.scope import Scope
from pruning.planning.zeroed import zeroed_shares, zeroed_weights
from tests.pruning.made_up import made_up_anatomy
from tests.tiny_models import tiny_model


@pytest.mark.parametrize("family", ["llava-llama", "llava-phi3", "gemma3"])
def test_a_density_is_of_all_projections_of_its_sub_layer(family: str) -> None:
    """As `lop sparsify` counts them: layer by layer, fused ones included."""
    anatomy = anatomy_of(tiny_model(family))
    layer, block = anatomy.layers[1], language_blocks(anatomy)[1]
    both = Architecture.of((Site(1, x), Option(layer.units(x), density=0.25)) for x in Sublayer)
    zeros = zeroed_weights(anatomy, both)
    assert sum(zeros.values()) == block.parameters * 3 // 4
    achieved = achieved_costs(anatomy, both)
    assert achieved.zeroed[Scope.DECODER] == block.parameters * 3 // 4 / anatomy.decoder_parameters
    assert achieved.zeroed[Scope.FFN] == zeros[Site(1, Sublayer.FFN)] / anatomy.ffn_parameters
    assert set(achieved.removed.values()) == {0.0}


def test_what_has_no_density_has_no_zeros() -> None:
    anatomy = anatomy_of(tiny_model("llava-llama"))
    assert zeroed_shares(anatomy, Architecture.of({Site(0, Sublayer.FFN): Option(8)})) == {}


@pytest.mark.parametrize("option", [Option(8, density=0.5), Option(48, bits=4, density=0.5)])
def test_densities_stand_alone(option: Option) -> None:
    anatomy = anatomy_of(tiny_model("llava-llama"))
    with pytest.raises(InputError, match=r"keeps all its units and the bits.*layer 0, ffn"):
        zeroed_weights(anatomy, Architecture.of({Site(0, Sublayer.FFN): option}))


def test_weights_that_are_not_known_are_not_counted() -> None:
    site = Site(0, Sublayer.FFN)
    with pytest.raises(InputError, match="a density is of a sub-layer"):
        zeroed_weights(made_up_anatomy([16]), Architecture.of({site: Option(16, density=0.5)}))
