"""Latencies by hand: the roofline's two sides, the tables' rungs, and which of the two answers."""

import dataclasses
import json

import numpy as np
import pytest

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Site, Sublayer
from pruning.anatomy.decoder_layer import DecoderLayer, Part, TensorSpec
from pruning.devices.catalogue import DEVICES
from pruning.devices.device import Device, profiled_device
from pruning.devices.latency import latency_model
from pruning.devices.profile import parse_profile
from pruning.devices.roofline import BANDWIDTH_FRACTION, COMPUTE_FRACTION
from pruning.devices.tables import LayerShape
from pruning.devices.timing.ladder import LadderPlan
from pruning.devices.timing.ladder_times import LadderTimes, layer_table
from pruning.devices.timing.stopwatch import PassTimes
from pruning.errors import InputError
from pruning.planning import prices
from pruning.planning.axis_spaces import SPACES_OF_UNITS, SpaceName, fine_space
from pruning.planning.latency_model import Latency, LatencyModel, LatencySource, decode_steps, mean_cache_tokens
from pruning.planning.limits import Limits
from pruning.planning.prices import LatencyPrice
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
"""Measured before attention was."""
NEW_BENCH = profiled_device(made_up_profile("bench", anatomy=ANATOMY, attention=True))
FIRST_ATTENTION, FIRST_FFN = Site(0, Sublayer.ATTENTION), Site(0, Sublayer.FFN)


def anatomy_with_tensors() -> ModelAnatomy:
    """`ANATOMY` with tensors that say which of the 1,000 parameters are whose: 400 go with each KV group, 10 with the
    attention and 10 with the FFN, and 180 always stay."""
    tensors = []
    for layer in range(2):
        attention, ffn = Site(layer, Sublayer.ATTENTION), Site(layer, Sublayer.FFN)
        tensors += [
            TensorSpec(f"{layer}.a", (40, 20), "F32", attention, 0, (Part(Sublayer.ATTENTION, 20, 2),)),
            TensorSpec(f"{layer}.an", (10,), "F32", attention),
            TensorSpec(f"{layer}.f", (32, 30), "F32", ffn, 0, (Part(Sublayer.FFN, 1, 32),)),
            TensorSpec(f"{layer}.fn", (10,), "F32", ffn),
            TensorSpec(f"{layer}.s", (180,), "F32"),
        ]
    return dataclasses.replace(ANATOMY, tensors=tuple(tensors), fingerprint="1" * 64)


def site_us(model: LatencyModel, site: Site, units: list[int]) -> list[float]:
    return [x / 1e3 for x in model.site_ns(site, np.array(units)).tolist()]


def latency_of(
    model: LatencyModel, widths: list[int], groups: list[int] | None = None, *, anatomy: ModelAnatomy = ANATOMY
) -> Latency:
    found = LatencyPrice(anatomy, model).latency(anatomy.architecture(widths, groups))
    assert found is not None
    return found


def test_the_steps_of_a_request() -> None:
    # The first token comes from the prefill; steps attend to 11, 12 and 13 positions.
    assert decode_steps(Workload(prompt_tokens=10, output_tokens=4)) == 3
    assert mean_cache_tokens(Workload(prompt_tokens=10, output_tokens=4)) == 12
    for nothing in (0, 1):
        assert decode_steps(Workload(prompt_tokens=10, output_tokens=nothing)) == 0
        assert mean_cache_tokens(Workload(prompt_tokens=10, output_tokens=nothing)) == 11


def test_the_roofline_where_arithmetic_is_the_limit() -> None:
    model = latency_model(COMPUTE_BOUND, anatomy_with_tensors(), Workload(batch=2, prompt_tokens=3, output_tokens=1))
    # 2 sequences x 3 tokens x 2 operations a parameter; 6 pairs x 4 operations for each of 16 rows of a group's heads.
    groups = [0, 2 * (2 * 410 * 3 + 6 * 4 * 16), 2 * (2 * 810 * 3 + 6 * 4 * 32)]
    assert site_us(model, FIRST_ATTENTION, [0, 1, 2]) == pytest.approx(groups)
    assert site_us(model, FIRST_FFN, [0, 8, 32]) == pytest.approx([0, 12 * 250, 12 * 970])
    # The head for two tokens, and what no half of the two layers takes along.
    assert model.fixed_ns() / 1e3 == pytest.approx(2 * 1000 * 2 + 2 * 12 * 180, abs=0.01)


def test_the_roofline_where_memory_is_the_limit() -> None:
    model = latency_model(MEMORY_BOUND, anatomy_with_tensors(), Workload(batch=2, prompt_tokens=3, output_tokens=2))
    # 4 bytes a parameter, and 2 sequences x 3 (then 4) positions of a group's keys and values of 8.
    groups = [0, 4 * (410 + 2 * 3 * 16) + 4 * (410 + 2 * 4 * 16), 4 * (810 + 2 * 3 * 32) + 4 * (810 + 2 * 4 * 32)]
    assert site_us(model, FIRST_ATTENTION, [0, 1, 2]) == pytest.approx(groups, abs=0.003)
    assert site_us(model, FIRST_FFN, [0, 8]) == pytest.approx([0, 2 * 4 * 250], abs=0.003)
    # Prefill: head, 2 x 3 embedded rows of 10, and the rest of the model; decode: head and 2 rows.
    fixed = 4 * (1000 + 60 + 4000) + 4 * (1000 + 20) + 2 * 2 * 4 * 180
    assert model.fixed_ns() / 1e3 == pytest.approx(fixed, abs=0.01)


def test_without_tensors_all_but_channels_and_the_cache_is_there_whatever_is_kept() -> None:
    model = latency_model(COMPUTE_BOUND, ANATOMY, Workload(batch=2, prompt_tokens=3, output_tokens=1))
    assert site_us(model, FIRST_ATTENTION, [0, 2]) == pytest.approx([0, 2 * 6 * 4 * 32])
    assert model.fixed_ns() / 1e3 == pytest.approx(2 * 1000 * 2 + 2 * 12 * 1000, abs=0.01)


def test_the_vision_tower_is_counted_where_its_patches_are_known() -> None:
    table = TensorSpec("vision_tower.embeddings.position_embedding.weight", (17, 16), "F32")
    anatomy = dataclasses.replace(ANATOMY, tensors=(table,), fingerprint="2" * 64)
    workload = Workload(batch=2, prompt_tokens=3, output_tokens=1)
    model = latency_model(COMPUTE_BOUND, anatomy, workload)
    without = latency_model(COMPUTE_BOUND, ANATOMY, workload)
    # 4,000 parameters, once for each of 17 patches of two images.
    assert (model.fixed_ns() - without.fixed_ns()) / 1e3 == pytest.approx(2 * 4000 * 17 * 2, abs=0.01)
    assert "not counted" not in model.description


def test_the_longer_of_the_two_counts() -> None:
    workload = Workload(prompt_tokens=100, output_tokens=5)
    both = latency_of(latency_model(SLOW, ANATOMY, workload), [32, 32])
    compute = latency_of(latency_model(COMPUTE_BOUND, ANATOMY, workload), [32, 32])
    memory = latency_of(latency_model(MEMORY_BOUND, ANATOMY, workload), [32, 32])
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
    assert site_us(model, FIRST_FFN, [8, 16, 32]) == pytest.approx([1200, 2400, 3600])
    assert model.fixed_ns() == 46_000_000
    assert latency_of(model, [8, 32]) == Latency(prefill_ms=49.0, decode_ms_per_token=0.9, total_ms=50.8)


def test_tables_between_their_points() -> None:
    model = latency_model(BENCH, ANATOMY, Workload(prompt_tokens=15, output_tokens=1))
    # Halfway between the lengths every time is 1.5 times that at 10 tokens; halfway between the rungs likewise.
    assert site_us(model, FIRST_FFN, [8, 12, 24]) == pytest.approx([1500, 2250, 3750])
    assert model.fixed_ns() == 46_000_000
    # Narrower than the lowest rung costs as much as it.
    assert site_us(model, FIRST_FFN, [1]) == site_us(model, FIRST_FFN, [8])


def test_tables_of_both_halves_add_up_to_the_layer() -> None:
    model = latency_model(NEW_BENCH, ANATOMY, Workload(prompt_tokens=10, output_tokens=3))
    assert model.description == "measured: profile of Test bench (measured on a made-up processor, 2 threads)"
    # Without an FFN .1, .3 and .5 ms with 0, 1 and 2 groups, a tenth of it a step.
    assert site_us(model, FIRST_ATTENTION, [0, 1, 2]) == pytest.approx([0, 240, 480], abs=0.01)
    assert site_us(model, FIRST_FFN, [0, 1, 8, 16, 32]) == pytest.approx([0, 600, 600, 1800, 3000], abs=0.01)
    assert model.fixed_ns() / 1e3 == pytest.approx(46_000 + 2 * 120, abs=0.01)
    whole, before = (latency_of(latency_model(x, ANATOMY, model.workload), [8, 32]) for x in (NEW_BENCH, BENCH))
    assert whole.total_ms == pytest.approx(before.total_ms, abs=1e-4)
    # One layer of one group and a narrow FFN, one of nothing.
    assert latency_of(model, [8, 0], [1, 0]).total_ms == pytest.approx(46.24 + 0.24 + 0.6, abs=1e-4)


def test_numbers_of_groups_between_rungs_are_on_the_line() -> None:
    anatomy = made_up_anatomy([32, 32], num_heads=8, num_kv_groups=8)
    document = made_up_profile("bench", anatomy=anatomy, attention=True).model_dump(mode="json")
    document["layers"][0]["attention"] = {
        "kv_groups": [0, 2, 8],
        "prefill_ms": [[0.1, 0.2, 0.5], [0.1, 0.2, 0.5]],
        "decode_ms": [[0.01, 0.02, 0.05], [0.01, 0.02, 0.05]],
    }
    device = profiled_device(parse_profile(json.dumps(document)))
    model = latency_model(device, anatomy, Workload(prompt_tokens=10, output_tokens=1))
    # Fewer than the lowest rung cost as much as it, but for none.
    assert site_us(model, FIRST_ATTENTION, [0, 1, 2, 5, 8]) == pytest.approx([0, 100, 100, 250, 400], abs=0.01)


@pytest.mark.parametrize("name", SPACES_OF_UNITS)
def test_one_option_is_cheapest_under_all_limits_however_times_were_measured(name: SpaceName) -> None:
    """Of a device on which everything may be quicker than less of it: times are nothing but noise."""
    anatomy, rng = anatomy_with_tensors(), np.random.default_rng(0)
    plan, workload = LadderPlan.of(anatomy), Workload(prompt_tokens=14, output_tokens=5)
    space = fine_space(anatomy, name, round_to=8)

    def noise() -> LadderTimes:
        passes = [PassTimes(1000.0, tuple(rng.lognormal(0.0, 2.0, len(plan.rungs)))) for _ in range(6)]
        return LadderTimes.of([passes[:3], passes[3:]], plan)

    for _ in range(20):
        shape = LayerShape.is_of(anatomy, anatomy.layers[0])
        table = layer_table(shape, 1, (10, 20), plan, noise(), noise())
        profile = made_up_profile("bench", anatomy=anatomy).model_copy(update={"layers": (table,)})
        device = profiled_device(parse_profile(profile.model_dump_json()))
        price = LatencyPrice(anatomy, latency_model(device, anatomy, workload))
        memory = prices.memory_bytes(anatomy, workload)
        least = price.cost(space.architecture(space.bottom))
        assert price.limit(space, 0).least == least
        most = least + int(rng.uniform() * (price.total - least))
        limits = Limits(space, (price.limit(space, most), memory.limit(space, int(0.9 * memory.total))))
        worth = rng.normal(size=(space.num_decisions, int(space.counts.max())))
        chosen = space.architecture(limits.fit(rng.integers(space.counts), worth))
        assert price.cost(chosen) <= most


def test_a_profile_from_before_has_no_time_for_cut_attention_or_skips() -> None:
    model = latency_model(BENCH, ANATOMY, Workload(prompt_tokens=10, output_tokens=3))
    assert site_us(model, FIRST_ATTENTION, [2]) == [0]
    price = LatencyPrice(ANATOMY, model)
    for cut in (ANATOMY.architecture([32, 32], [2, 1]), ANATOMY.architecture([0, 32])):
        assert price.latency(cut) is None
    message = r"a profile that times them \(got 'bench', .*lop device profile bench --model ID`, or .*'ffn'"
    for site, units in ((FIRST_ATTENTION, [1, 2]), (FIRST_ATTENTION, [0]), (FIRST_FFN, [0, 8])):
        with pytest.raises(InputError, match=message):
            model.site_ns(site, np.array(units))
    several = profiled_device(made_up_profile("bench", anatomy=ANATOMY, batch=4))
    of_batch = latency_model(several, ANATOMY, Workload(batch=4, prompt_tokens=10, output_tokens=3))
    with pytest.raises(InputError, match="--batch 4"):
        of_batch.site_ns(FIRST_ATTENTION, np.array([0]))


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
    anatomy = made_up_anatomy([32] * 5)
    model = latency_model(BENCH, anatomy, Workload(prompt_tokens=10, output_tokens=1))
    assert latency_of(model, [32] * 5, anatomy=anatomy).prefill_ms == 60.0


@pytest.mark.parametrize("device", [*DEVICES.values(), NEW_BENCH], ids=lambda device: device.id)
@pytest.mark.parametrize("workload", [Workload(prompt_tokens=17, output_tokens=9), Workload(batch=8)])
def test_total_is_the_sum_of_the_parts_and_no_time_falls(device: Device, workload: Workload) -> None:
    anatomy = anatomy_with_tensors()
    model = latency_model(device, anatomy, workload)
    times = {
        (layer, sublayer): model.site_ns(Site(layer, sublayer), np.arange(most + 1))
        for layer in range(2)
        for sublayer, most in ((Sublayer.FFN, 32), (Sublayer.ATTENTION, 2))
    }
    for row in times.values():
        assert row.dtype == np.int64
        assert (np.diff(row) >= 0).all()
        assert row[0] == 0 < row[-1]  # a unit may take less than a nanosecond
    for widths, groups in (([32, 32], [2, 2]), ([1, 17], [1, 2]), ([0, 31], [2, 0])):
        total = model.fixed_ns()
        for layer in range(2):
            total += int(times[layer, Sublayer.FFN][widths[layer]] + times[layer, Sublayer.ATTENTION][groups[layer]])
        found = latency_of(model, widths, groups, anatomy=anatomy)
        assert found.total_ms == total / 1e6
        assert LatencyPrice(anatomy, model).cost(anatomy.architecture(widths, groups)) == total
        parts = found.prefill_ms + decode_steps(workload) * found.decode_ms_per_token
        assert found.total_ms == pytest.approx(parts, rel=1e-12)


def test_a_request_without_end_is_refused() -> None:
    layer = DecoderLayer(0, 2**17, 128, 8, 128, 3 * 2**14, 2**40)
    huge = ModelAnatomy("llava", "llama", 2**14, 2**18, (layer,), 2**41, "F32", "0" * 64)
    model = latency_model(DEVICES["raspberry-pi-5-8gb"], huge, Workload(batch=1024, prompt_tokens=2**20))
    with pytest.raises(InputError, match=r"end within 104 days.*batch=1024.*smaller workload"):
        model.fixed_ns()
    steps = latency_model(SLOW, huge, Workload(prompt_tokens=1, output_tokens=2**20))
    with pytest.raises(InputError, match=r"output_tokens=1048576"):
        steps.site_ns(FIRST_FFN, np.array([2**17]))
