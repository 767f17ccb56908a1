"""Latencies by hand: the roofline's two sides, the tables' rungs, and which of the two answers."""

import dataclasses

import numpy as np
import pytest

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.decoder_layer import DecoderLayer, TensorSpec
from pruning.devices.catalogue import DEVICES
from pruning.devices.device import Device, profiled_device
from pruning.devices.latency import latency_model
from pruning.devices.roofline import BANDWIDTH_FRACTION, COMPUTE_FRACTION
from pruning.errors import InputError
from pruning.planning.latency_model import Latency, LatencyModel, LatencySource, decode_steps, mean_cache_tokens
from pruning.planning.workload import Workload
from tests.pruning.made_up import made_up_anatomy
from tests.pruning.made_up_devices import made_up_profile

ANATOMY = made_up_anatomy([32, 32])
"""Two layers of 32 x 30 + 1000 parameters, 4 heads of 8, 2 KV groups; head 1,000 and vision 4,000 parameters; F32."""

# At the assumed fractions: 1 FLOP and 1 byte a microsecond.
SLOW = Device("slow", "Slow", 1, {"F32": 1e6 / COMPUTE_FRACTION}, 1e6 / BANDWIDTH_FRACTION, "made up")
# Memory without end, or arithmetic without end.
COMPUTE_BOUND = Device("c", "C", 1, {"F32": 1e6 / COMPUTE_FRACTION}, 1e18, "made up")
MEMORY_BOUND = Device("m", "M", 1, {"F32": 1e18}, 1e6 / BANDWIDTH_FRACTION, "made up")

BENCH = profiled_device(made_up_profile("bench", anatomy=ANATOMY))


def layer_us(model: LatencyModel, widths: list[int]) -> list[float]:
    return [x / 1e3 for x in model.layer_ns(0, np.array(widths)).tolist()]


def test_the_steps_of_a_request() -> None:
    # The first token comes from the prefill; steps attend to 11, 12 and 13 positions.
    assert decode_steps(Workload(prompt_tokens=10, output_tokens=4)) == 3
    assert mean_cache_tokens(Workload(prompt_tokens=10, output_tokens=4)) == 12
    for nothing in (0, 1):
        assert decode_steps(Workload(prompt_tokens=10, output_tokens=nothing)) == 0
        assert mean_cache_tokens(Workload(prompt_tokens=10, output_tokens=nothing)) == 11


def test_the_roofline_where_arithmetic_is_the_limit() -> None:
    model = latency_model(COMPUTE_BOUND, ANATOMY, Workload(batch=2, prompt_tokens=3, output_tokens=1))
    # 1,240 parameters at width 8: 2 sequences x 3 tokens x 2 operations, and 6 pairs x 4 x 32 operations each.
    assert layer_us(model, [8, 32]) == pytest.approx([2 * (2 * 1240 * 3 + 128 * 6), 2 * (2 * 1960 * 3 + 128 * 6)])


def test_the_roofline_where_memory_is_the_limit() -> None:
    model = latency_model(MEMORY_BOUND, ANATOMY, Workload(batch=2, prompt_tokens=3, output_tokens=2))
    # 4 bytes a parameter, and 2 sequences x 3 (then 4) positions of keys and values of 2 groups of 8.
    assert layer_us(model, [8]) == pytest.approx([4 * (1240 + 2 * 3 * 32) + 4 * (1240 + 2 * 4 * 32)], abs=0.002)
    # Prefill: head, 2 x 3 embedded rows of 10, and the rest of the model; decode: head and 2 rows.
    assert model.fixed_ns() / 1e3 == pytest.approx(4 * (1000 + 60 + 4000) + 4 * (1000 + 20), abs=0.003)


def test_the_vision_tower_is_counted_where_its_patches_are_known() -> None:
    table = TensorSpec("vision_tower.embeddings.position_embedding.weight", (17, 16), "F32")
    anatomy = dataclasses.replace(ANATOMY, tensors=(table,))
    workload = Workload(batch=2, prompt_tokens=3, output_tokens=1)
    model = latency_model(COMPUTE_BOUND, anatomy, workload)
    # 4,000 parameters, once for each of 17 patches of two images, and the head for two tokens.
    assert model.fixed_ns() / 1e3 == pytest.approx(2 * 4000 * 17 * 2 + 2 * 1000 * 2)
    assert "not counted" not in model.description
    assert latency_model(COMPUTE_BOUND, ANATOMY, workload).fixed_ns() / 1e3 == pytest.approx(2 * 1000 * 2, abs=0.01)


def test_the_longer_of_the_two_counts() -> None:
    workload = Workload(prompt_tokens=100, output_tokens=5)
    both = latency_model(SLOW, ANATOMY, workload).latency([32, 32])
    compute = latency_model(COMPUTE_BOUND, ANATOMY, workload).latency([32, 32])
    memory = latency_model(MEMORY_BOUND, ANATOMY, workload).latency([32, 32])
    assert both.prefill_ms > compute.prefill_ms > memory.prefill_ms
    assert both.decode_ms_per_token == pytest.approx(memory.decode_ms_per_token)
    assert memory.decode_ms_per_token > compute.decode_ms_per_token


def test_an_estimate_says_that_it_is_one() -> None:
    model = latency_model(DEVICES["l4"], ANATOMY, Workload())
    assert model.source is LatencySource.ROOFLINE
    assert model.description == (
        "estimated, not measured: roofline of NVIDIA L4 at 18.18 TFLOP/s F32 and 210 GB/s (60% and 70% of NVIDIA L4 "
        "Tensor Core GPU data sheet); the vision tower's operations are not counted"
    )


def test_tables_at_their_own_points() -> None:
    model = latency_model(BENCH, ANATOMY, Workload(prompt_tokens=10, output_tokens=3))
    assert model.source is LatencySource.MEASURED
    assert model.description == "measured: profile of Test bench (measured on a made-up processor, 2 threads)"
    assert layer_us(model, [8, 16, 32]) == pytest.approx([1200, 2400, 3600])
    assert model.fixed_ns() == 46_000_000
    assert model.latency([8, 32]) == Latency(prefill_ms=49.0, decode_ms_per_token=0.9, total_ms=50.8)


def test_tables_between_their_points() -> None:
    model = latency_model(BENCH, ANATOMY, Workload(prompt_tokens=15, output_tokens=1))
    # Halfway between the lengths every time is 1.5 times that at 10 tokens; halfway between the rungs likewise.
    assert layer_us(model, [8, 12, 24]) == pytest.approx([1500, 2250, 3750])
    assert model.fixed_ns() == 46_000_000
    # Narrower than the lowest rung costs as much as it.
    assert layer_us(model, [1]) == layer_us(model, [8])


@pytest.mark.parametrize(
    ("workload", "why"),
    [
        (Workload(batch=2, prompt_tokens=10, output_tokens=1), "layers of this shape were not measured at batch 2"),
        (Workload(prompt_tokens=9, output_tokens=3), "prompts were measured from 10 to 20 tokens, not at 9"),
        (Workload(prompt_tokens=21, output_tokens=1), "prompts were measured from 10 to 20 tokens, not at 21"),
        (Workload(prompt_tokens=20, output_tokens=23), "caches were measured from 11 to 31 tokens, not at 31.5"),
    ],
)
def test_nothing_is_extrapolated(workload: Workload, why: str) -> None:
    model = latency_model(BENCH, ANATOMY, workload)
    assert model.source is LatencySource.ROOFLINE
    # What was measured of the machine is taken as it is: no fraction of it.
    assert "0.1 TFLOP/s F32 and 10 GB/s (measured on a made-up processor, 2 threads)" in model.description
    assert model.description.endswith(f"; {why}")


def test_the_last_covered_workload_is_measured() -> None:
    assert latency_model(BENCH, ANATOMY, Workload(prompt_tokens=20, output_tokens=22)).source is LatencySource.MEASURED


@pytest.mark.parametrize(
    ("anatomy", "why"),
    [
        (made_up_anatomy([32, 32], per_channel=20), "layers of this shape were not measured at batch 1"),
        (made_up_anatomy([32, 32], other=1001), "layers of this shape were not measured at batch 1"),
        (made_up_anatomy([32, 33]), "FFNs were measured up to width 32, not 33"),
    ],
)
def test_another_shape_is_not_priced_by_the_table(anatomy: ModelAnatomy, why: str) -> None:
    model = latency_model(BENCH, anatomy, Workload(prompt_tokens=10, output_tokens=1))
    assert model.source is LatencySource.ROOFLINE
    assert model.description.endswith(f"; {why}")


def test_a_model_of_more_layers_of_the_shape_is_priced_by_the_table() -> None:
    # Its embedding and head are the same 5,000 parameters.
    model = latency_model(BENCH, made_up_anatomy([32] * 5), Workload(prompt_tokens=10, output_tokens=1))
    assert model.latency([32] * 5).prefill_ms == 60.0


@pytest.mark.parametrize("device", [*DEVICES.values(), BENCH], ids=lambda device: device.id)
@pytest.mark.parametrize("workload", [Workload(prompt_tokens=17, output_tokens=9), Workload(batch=8)])
def test_total_is_the_sum_of_the_parts_and_no_time_falls(device: Device, workload: Workload) -> None:
    model = latency_model(device, ANATOMY, workload)
    everything = np.arange(1, 33)
    times = [model.layer_ns(layer, everything) for layer in range(2)]
    assert all(row.dtype == np.int64 and (np.diff(row) >= 0).all() and row[0] > 0 for row in times)
    for widths in ([32, 32], [1, 17], [8, 31]):
        total = model.fixed_ns() + sum(int(row[width - 1]) for row, width in zip(times, widths, strict=True))
        found = model.latency(widths)
        assert found.total_ms == total / 1e6
        parts = found.prefill_ms + decode_steps(workload) * found.decode_ms_per_token
        assert found.total_ms == pytest.approx(parts, rel=1e-12)


def test_a_request_without_end_is_refused() -> None:
    layer = DecoderLayer(0, 2**17, 128, 8, 128, 3 * 2**14, 2**40)
    huge = ModelAnatomy("llava", "llama", 2**14, 2**18, (layer,), 2**41, "F32", "0" * 64)
    model = latency_model(DEVICES["raspberry-pi-5-8gb"], huge, Workload(batch=1024, prompt_tokens=2**20))
    with pytest.raises(InputError, match=r"end within 104 days.*batch=1024.*smaller workload"):
        model.layer_ns(0, np.array([8]))
    steps = latency_model(SLOW, huge, Workload(prompt_tokens=1, output_tokens=2**20))
    with pytest.raises(InputError, match=r"output_tokens=1048576"):
        steps.layer_ns(0, np.array([8]))
