"""Tensor-parallel sizes and skipped attention, by hand; needs no vLLM."""

import re

import pytest
from lop_vllm.sizes import attention_runs, check_parallel_sizes

from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.anatomy.decoder_layer import DecoderLayer
from pruning.checkpoints.anatomy_reader import layer_shapes
from pruning.errors import InputError
from tests.tiny_models import text


def dense() -> list[DecoderLayer]:
    """Four layers of 48 channels and 2 KV groups."""
    return layer_shapes(text.llama())


def kept(**units: int) -> Architecture:
    """`ffn_1=12`: layer 1 keeps 12 channels; `attention_0=1`: layer 0 one group."""
    places = {key: key.split("_") for key in units}
    return Architecture.of({Site(int(places[k][1]), Sublayer(places[k][0])): Option(n) for k, n in units.items()})


def test_sizes_that_divide_every_layer_are_accepted() -> None:
    check_parallel_sizes(kept(ffn_1=12, ffn_2=0, attention_3=0), dense(), tensor_parallel=2)
    check_parallel_sizes(kept(ffn_1=13, attention_0=1), dense(), tensor_parallel=1)


@pytest.mark.parametrize(
    ("architecture", "said"),
    [(kept(ffn_1=13), "layer 1 has 13 FFN channels"), (kept(attention_0=1), "layer 0 has 1 KV groups")],
)
def test_a_size_that_does_not_divide_is_refused_with_those_that_do(architecture: Architecture, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        check_parallel_sizes(architecture, dense(), tensor_parallel=2)
    assert caught.value.remedy.endswith(": 1")


def test_what_is_not_split_is_refused() -> None:
    with pytest.raises(InputError, match="pipeline"):
        check_parallel_sizes(kept(ffn_1=12), dense(), tensor_parallel=1, pipeline_parallel=2)
    with pytest.raises(InputError, match="fused"):
        check_parallel_sizes(kept(ffn_1=12), dense(), tensor_parallel=2, fused=True)


def test_runs_of_layers_that_have_attention() -> None:
    assert attention_runs(kept(attention_0=0, attention_2=0, ffn_1=0), 5) == [range(1, 2), range(3, 5)]
    assert attention_runs(kept(ffn_1=0), 3) == [range(3)]
