"""What the plugin refuses by name: other versions of vLLM, weights in few bits that were not tried; needs no vLLM."""

import logging
import sys
from collections.abc import Callable
from copy import deepcopy
from types import ModuleType
from typing import Any

import lop_vllm
import pytest
from lop_vllm.sizes import check_weights
from transformers import AutoConfig

from pruning.errors import UnsupportedModelError, UnsupportedVersionError
from tests.tiny_models import text


def pruned() -> Any:
    """A config whose second layer has 12 of 48 channels."""
    overrides = {"1": {"intermediate_size": 12}}
    dense = text.llama().to_dict()
    return AutoConfig.for_model(**dense, per_layer_config=overrides, allow_global_per_layer_attribute_access=True)


def config_class(**methods: Callable[..., None]) -> type:
    """vLLM's `ModelConfig`, as far as a version that was not tried has it."""
    return type(
        "ModelConfig", (), {"__init__": lambda self, hf_config: setattr(self, "hf_config", hf_config)} | methods
    )


@pytest.fixture
def in_vllm(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, type], None]:
    """vLLM of a version, with that class of configs."""

    def put(version: str, model_config: type) -> None:
        vllm, config = ModuleType("vllm"), ModuleType("vllm.config")
        vllm.__version__ = version  # type: ignore[attr-defined]
        config.ModelConfig = model_config  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "vllm", vllm)
        monkeypatch.setitem(sys.modules, "vllm.config", config)

    return put


@pytest.mark.parametrize("version", ["0.31.4", "0.33.0", "1.0.0rc1"])
def test_another_version_of_vllm_serves_dense_models_and_refuses_pruned_ones(
    in_vllm: Callable[[str, type], None], version: str
) -> None:
    asked: list[Any] = []
    own = config_class(verify_with_parallel_config=lambda _, parallel: asked.append(parallel))
    in_vllm(version, own)
    for _ in range(2):  # vLLM loads its plugins several times
        lop_vllm.register()
    own(text.llama()).verify_with_parallel_config("parallel")
    assert asked == ["parallel"]
    with pytest.raises(UnsupportedVersionError, match=rf"in vLLM 0\.32 \(got vLLM {version}.*Install vLLM 0\.32\.\*"):
        own(pruned()).verify_with_parallel_config("parallel")


def test_sizes_by_layer_are_seen_where_transformers_is_too_old_to_know_of_them(
    in_vllm: Callable[[str, type], None],
) -> None:
    own = config_class(__post_init__=lambda _: None)
    in_vllm("0.9.0", own)
    lop_vllm.register()
    old = type(
        "Config",
        (),
        {"model_type": "llama", "per_layer_config": {"1": {}}, "get_text_config": lambda self, **_: self},
    )
    with pytest.raises(UnsupportedVersionError, match="per_layer_config"):
        own(old()).__post_init__()
    own(text.llama()).__post_init__()


def test_a_vllm_without_a_place_for_the_refusal_is_warned_of(
    in_vllm: Callable[[str, type], None], caplog: pytest.LogCaptureFixture
) -> None:
    in_vllm("0.33.0", config_class())
    with caplog.at_level(logging.WARNING):
        lop_vllm.register()
    assert "pruned checkpoints will stop at a shape that differs" in caplog.text


def few_bits(config: Any, **weights: Any) -> Any:
    """`config` with what `lop apply` writes for 4 bits, changed."""
    scheme = {"num_bits": 4, "type": "int", "symmetric": True, "group_size": 32, "strategy": "group"} | weights
    found = deepcopy(config)
    found.quantization_config = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": scheme, "input_activations": None}},
    }
    return found


def test_weights_in_few_bits_that_were_tried_are_served_and_others_refused() -> None:
    check_weights(pruned(), tensor_parallel=2)
    check_weights(few_bits(pruned()), tensor_parallel=1)
    for config, tensor_parallel, said in (
        (few_bits(pruned(), num_bits=8), 1, "weights of 8 bits in groups of 32"),
        (few_bits(pruned(), group_size=64), 1, "weights of 4 bits in groups of 64"),
        (few_bits(pruned()), 2, "--tensor-parallel-size 2"),
        (few_bits(text.phi()), 1, "model_type='phi'"),
    ):
        with pytest.raises(UnsupportedModelError, match=said):
            check_weights(config, tensor_parallel=tensor_parallel)
    other = pruned()
    other.quantization_config = {"quant_method": "awq"}
    with pytest.raises(UnsupportedModelError, match="quantization_config of awq"):
        check_weights(other, tensor_parallel=1)
