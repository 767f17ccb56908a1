"""Costs, worked out by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.checkpoints.safetensors_layout import safetensors_file_bytes
from pruning.devices.device import profiled_device
from pruning.devices.latency import latency_model
from pruning.planning import prices
from pruning.planning.cost import achieved_costs, kv_cache_bytes
from pruning.planning.scope import Scope
from pruning.planning.workload import Workload
from tests.pruning.made_up import made_up_anatomy
from tests.pruning.made_up_devices import made_up_profile


def flops(anatomy: ModelAnatomy, widths: list[int], workload: Workload) -> int:
    return prices.flops(anatomy, workload).cost(anatomy.architecture(widths))


def test_kv_cache_of_two_layers() -> None:
    anatomy = made_up_anatomy([64, 64])
    # 2 (keys and values) x 2 groups x 8 per head x 2 layers = 64 values a token, 4 bytes each.
    assert kv_cache_bytes(anatomy, Workload(batch=3, prompt_tokens=10, output_tokens=5)) == 64 * 4 * 3 * 15
    half = replace(anatomy, dtype="BF16")
    assert kv_cache_bytes(half, Workload(batch=1, prompt_tokens=1, output_tokens=0)) == 128


def test_a_window_bounds_what_its_layer_caches() -> None:
    anatomy = made_up_anatomy([64, 64])
    anatomy = replace(anatomy, layers=(replace(anatomy.layers[0], window=6), anatomy.layers[1]))
    # 2 x 2 groups x 8 per head, 4 bytes: 6 positions in one layer, all 15 in the other.
    workload = Workload(batch=3, prompt_tokens=10, output_tokens=5)
    assert kv_cache_bytes(anatomy, workload) == 32 * 4 * 3 * (6 + 15)
    assert kv_cache_bytes(anatomy, workload, anatomy.architecture([64, 64], [1, 1])) == 16 * 4 * 3 * (6 + 15)
    short = Workload(batch=1, prompt_tokens=5, output_tokens=0)
    assert kv_cache_bytes(anatomy, short) == 32 * 4 * (5 + 5)


def test_flops_of_one_layer() -> None:
    anatomy = made_up_anatomy([64], per_channel=30, other=1000)
    # 3 positions (4 prompt + 2 output - 1 = 5 positions): weights, attention over 1 + ... + 5 positions, head twice.
    expected = 2 * (32 * 30 + 1000) * 5 + 4 * 4 * 8 * 15 + 2 * 10 * 100 * 2
    assert flops(anatomy, [32], Workload(batch=1, prompt_tokens=4, output_tokens=2)) == expected
    assert flops(anatomy, [32], Workload(batch=7, prompt_tokens=4, output_tokens=2)) == 7 * expected


def test_flops_are_an_upper_bound_where_windows_bound_attention() -> None:
    anatomy = made_up_anatomy([64], per_channel=30, other=1000)
    windowed = replace(anatomy, layers=(replace(anatomy.layers[0], window=2),))
    workload = Workload(batch=1, prompt_tokens=4, output_tokens=2)
    assert flops(windowed, [32], workload) == flops(anatomy, [32], workload)


def test_nothing_is_said_about_time_that_nobody_measured() -> None:
    anatomy, workload = made_up_anatomy([32, 32]), Workload(batch=1, prompt_tokens=10, output_tokens=2)
    narrow = anatomy.architecture([8, 8])
    cuts = (anatomy.architecture([8, 8], [1, 2]), anatomy.architecture([8, 0]))
    for attention in (False, True):
        profile = made_up_profile(anatomy=anatomy, attention=attention)
        latency = latency_model(profiled_device(profile), anatomy, workload)
        assert achieved_costs(anatomy, narrow, workload, latency=latency).latency_source == "measured"
        for cut in cuts:
            costs = achieved_costs(anatomy, cut, workload, latency=latency)
            said = (costs.latency_ms, costs.prefill_ms, costs.decode_ms_per_token, costs.latency_source)
            assert (None not in said) if attention else said == (None,) * 4


def test_parameters_and_sparsity_per_scope() -> None:
    anatomy = made_up_anatomy([64, 64], per_channel=30, other=1000)
    achieved = achieved_costs(anatomy, anatomy.architecture([32, 64]))
    assert achieved.parameters == 5840 + 5000 - 960
    assert achieved.removed == {Scope.FFN: 960 / 3840, Scope.DECODER: 960 / 5840, Scope.MODEL: 960 / 10840}


@pytest.mark.parametrize("count", [1, 3, 12])
def test_safetensors_size_is_exact(count: int, tmp_path: Path) -> None:
    dtypes = [(torch.float32, "F32"), (torch.bfloat16, "BF16"), (torch.int64, "I64"), (torch.uint8, "U8")]
    tensors, headers = {}, []
    for index in range(count):
        dtype, name = dtypes[index % 4]
        shape = (index + 1, 10 ** (index % 3))
        tensors[f"block.{index}.weight"] = torch.zeros(shape, dtype=dtype)
        headers.append((f"block.{index}.weight", shape, name))
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    assert safetensors_file_bytes(headers) == (tmp_path / "x.safetensors").stat().st_size
