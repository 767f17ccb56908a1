"""Profiling a tiny model of every family, for real; what is measured is checked for being whole, not for its size."""

import dataclasses
from pathlib import Path

import pytest
import torch

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Site, Sublayer
from pruning.anatomy.decoder_view import decoder_view
from pruning.checkpoints.anatomy_reader import anatomy_of
from pruning.devices.device import profiled_device
from pruning.devices.latency import latency_model
from pruning.devices.profile import parse_profile
from pruning.devices.timing import ladder, machine, profiling
from pruning.devices.timing.ladder import LadderPlan, Rung, build_ladder_model, ladder_groups, ladder_of, ladder_widths
from pruning.devices.timing.ladder_times import LadderTimes, drift_of
from pruning.devices.timing.machine import Machine, describe_machine
from pruning.devices.timing.profiling import ProfileSettings, profile_device
from pruning.devices.timing.requests import DECODE_STEPS, random_prompt, time_images, time_request
from pruning.devices.timing.stopwatch import PassTimes, Stopwatch
from pruning.errors import InputError
from pruning.planning.latency_model import LatencySource
from pruning.planning.prices import LatencyPrice
from pruning.planning.workload import Workload
from tests.pruning.made_up import made_up_anatomy
from tests.pruning.made_up_devices import made_up_profile
from tests.tiny_models import BUILDERS, tiny_model, tiny_processor

QUICK = ProfileSettings(prompt_tokens=(6, 12), output_tokens=4, seconds=0.0, min_rounds=2)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(machine, "_MATRIX_BYTES", 2**16)
    monkeypatch.setattr(machine, "_REPEATS", 1)


def test_the_ladder_of_a_width() -> None:
    assert ladder_widths(5632) == (8, 704, 1408, 2112, 2816, 3520, 4224, 4928, 5632)
    assert ladder_widths(100) == (8, 24, 32, 48, 56, 72, 80, 100)
    assert ladder_widths(8) == (8,)
    assert ladder_widths(5) == (5,)


def test_the_ladder_of_a_layer_goes_from_nothing_to_all_of_it() -> None:
    assert ladder_groups(1) == (0, 1)
    assert ladder_groups(3) == (0, 1, 2, 3)
    assert ladder_groups(32) == (0, 1, 4, 8, 12, 16, 20, 24, 28, 32)
    layer = made_up_anatomy([16], num_heads=6, num_kv_groups=3).layers[0]
    assert ladder_of(layer) == (*((groups, 0) for groups in range(4)), (3, 8), (3, 16))


def test_a_small_model_has_as_many_layers_as_the_real_one_and_a_large_one_every_rung_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    anatomy = made_up_anatomy([16] * 7)  # no, one and both KV groups without an FFN, then widths of 8 and 16
    plan = LadderPlan.of(anatomy)
    each = (Rung(0, 0), Rung(2, 0), Rung(2, 16), Rung(1, 0), Rung(2, 8))
    assert plan.rungs == (Rung(2, 8), *each, *each)
    assert plan.ladder == (Rung(0, 0), Rung(1, 0), Rung(2, 0), Rung(2, 8), Rung(2, 16))
    # Of a made-up layer all but the FFN is said to stay.
    layers = 11 * 1000 + 3 * 8 * 30 + 2 * 16 * 30
    assert plan.weight_bytes == 4 * (layers + 5000)
    monkeypatch.setattr(ladder, "COLD_BYTES", 1)
    assert LadderPlan.of(anatomy).rungs == (Rung(2, 8), *each)


@pytest.mark.parametrize("name", BUILDERS)
def test_the_model_is_as_large_as_was_said(name: str) -> None:
    model = tiny_model(name)
    plan = LadderPlan.of(anatomy_of(model))
    built = build_ladder_model(model.config, plan, dtype=torch.float32, device=CPU)
    view = decoder_view(built)
    assert type(built) is type(model)
    for index, rung in enumerate(plan.rungs):
        assert view.ffn_width(index) == rung.ffn_width
        attention = Site(index, Sublayer.ATTENTION)
        kept = 0 if view.is_skipped(attention) else view.attention_out(index).in_features
        heads = anatomy_of(model).layers[0]
        assert kept == rung.kv_groups * heads.heads_per_group * heads.head_dim
    found = sum(p.numel() * p.element_size() for p in built.parameters())
    # Idefics2's projector has three matrices of the text config's FFN width, which is 8 while the ladder is built.
    projector = 4 * (48 - 8) * (16 + 16 + 32) if name == "idefics2" else 0
    assert found + projector == plan.weight_bytes
    assert model.config.get_text_config().num_hidden_layers == 4  # its own config is left alone


@pytest.mark.parametrize("name", BUILDERS)
def test_every_family_can_be_profiled(name: str) -> None:
    model = tiny_model(name)
    anatomy = anatomy_of(model)
    steps: list[tuple[int, int]] = []
    profile = profile_device(
        model.config,
        anatomy,
        device_id="here",
        settings=QUICK,
        device=CPU,
        on_step=lambda done, total: steps.append((done, total)),
    )
    assert steps == [(0, 2), (1, 2), (2, 2)]
    assert parse_profile(profile.model_dump_json()) == profile
    (table,), (outside,) = profile.layers, profile.outside
    assert table.ffn_widths == (8, 16, 24, 32, 40, 48)
    assert (table.prompt_tokens, table.cache_tokens) == ((6, 12, 16), (7, 13, 17))
    assert (outside.prompt_tokens, outside.vision_ms) == ((6, 12, 16), 0.0)
    assert table.attention is not None
    groups = anatomy.layers[0].num_kv_groups
    assert table.attention.kv_groups == tuple(range(groups + 1))
    model_of_time = latency_model(profiled_device(profile), anatomy, Workload(prompt_tokens=8, output_tokens=4))
    assert model_of_time.source is LatencySource.MEASURED
    price = LatencyPrice(anatomy, model_of_time)
    skipped, cut, narrow, dense = (
        price.latency(anatomy.architecture([width] * 4, [kept] * 4))
        for width, kept in ((0, 0), (8, 1), (8, groups), (48, groups))
    )
    assert skipped is not None
    assert cut is not None
    assert narrow is not None
    assert dense is not None
    assert 0 < skipped.total_ms <= cut.total_ms <= narrow.total_ms <= dense.total_ms


def test_layers_and_rest_add_up_to_what_was_measured() -> None:
    plan = LadderPlan((Rung(1, 8), Rung(1, 8), Rung(1, 24), Rung(1, 16), Rung(1, 32)), 0)
    # The first layer warms up; 24 was slower than 32, so both become their mean.
    passes = [PassTimes(100.0, (50.0, 1.0, 6.0, 2.0, 4.0)), PassTimes(102.0, (9.0, 3.0, 6.0, 2.0, 4.0))]
    times = LadderTimes.of([passes], plan)
    assert times.rungs_ms == ((2.0, 2.0, 5.0, 5.0),)
    assert times.outside_ms == (101.0 - (2.0 + 2.0 + 5.0 + 2.0 + 5.0),)
    assert times.smoothing == pytest.approx(0.25)


def test_a_layer_that_keeps_more_takes_no_less() -> None:
    plan = LadderPlan((Rung(3, 8), Rung(3, 8), Rung(1, 0), Rung(3, 0), Rung(0, 0), Rung(2, 0)), 0)
    # Three groups were quicker than two, and a narrow FFN than none: each pair becomes its mean.
    times = LadderTimes.of([[PassTimes(50.0, (9.0, 4.0, 2.0, 5.0, 1.0, 7.0))]], plan)
    assert plan.ladder == (Rung(0, 0), Rung(1, 0), Rung(2, 0), Rung(3, 0), Rung(3, 8))
    assert times.rungs_ms == ((1.0, 2.0, *[pytest.approx(16 / 3)] * 3),)
    assert times.smoothing == pytest.approx(1 / 3)
    assert list(times.rungs_ms[0]) == sorted(times.rungs_ms[0])


def test_drift_is_of_later_rounds_over_earlier_ones() -> None:
    def passes(*totals: float) -> list[PassTimes]:
        return [PassTimes(total, ()) for total in totals]

    assert drift_of([passes(10.0)]) == 0.0
    assert drift_of([passes(10.0, 11.0)]) == pytest.approx(0.1)
    # Medians of halves: one slow pass says nothing; of an odd number, the one in the middle counts in neither.
    assert drift_of([passes(10.0, 10.0, 90.0, 10.0, 8.0, 8.0, 30.0)]) == pytest.approx(-0.2)
    # The lengths' median.
    assert drift_of([passes(1.0, 1.0), passes(1.0, 1.3), passes(1.0, 9.0)]) == pytest.approx(0.3)


def test_a_longer_pass_takes_no_less() -> None:
    plan = LadderPlan((Rung(1, 8), Rung(1, 8), Rung(1, 16)), 0)
    # At the longer length the narrow rung was quicker, and so was the rest.
    shorter, longer = PassTimes(20.0, (1.0, 2.0, 4.0)), PassTimes(19.0, (1.0, 1.0, 8.0))
    times = LadderTimes.of([[shorter], [longer]], plan)
    assert times.rungs_ms == ((1.5, 4.0), (1.5, 8.0))
    assert times.outside_ms == (10.5, 10.5)  # of 20 - 7 and 19 - 11
    assert times.smoothing == pytest.approx(0.5)


def test_a_pass_is_timed_by_layer_and_hooks_are_removed() -> None:
    model = tiny_model()
    prompt = random_prompt(model, batch=2, tokens=5)
    assert prompt.shape == (2, 5)
    with Stopwatch(model) as stopwatch:
        times = time_request(stopwatch, prompt)
    assert len(times.decode) == DECODE_STEPS
    for one in (times.prefill, *times.decode):
        assert len(one.layers_ms) == 4
        assert 0 < sum(one.layers_ms) < one.total_ms
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in decoder_view(model).layers)


def test_prompts_hold_no_token_that_stands_for_an_image() -> None:
    for name in ("llava-llama", "qwen2-vl"):
        assert not set(random_prompt(tiny_model(name), batch=4, tokens=500).flatten().tolist()) & {3}


def test_images_are_timed_too() -> None:
    model = tiny_model()
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    inputs = dict(tiny_processor()(text=["<image> what is it?"], images=[image], return_tensors="pt"))
    assert time_images(model, inputs) > 0
    profile = profile_device(
        model.config, anatomy_of(model), device_id="here", settings=QUICK, images=inputs, device=CPU
    )
    assert profile.outside[0].vision_ms > 0


def test_a_model_that_does_not_fit_is_refused_before_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    small = dataclasses.replace(describe_machine(CPU), free_bytes=1000)
    monkeypatch.setattr(profiling, "describe_machine", lambda _: small)
    monkeypatch.setattr(profiling, "build_ladder_model", lambda *_, **__: pytest.fail("built"))
    with pytest.raises(InputError, match=r"must fit into free memory.*1,000 free.*smaller batch"):
        profile_device(model.config, anatomy_of(model), device_id="here", settings=QUICK, device=CPU)


def test_layers_of_two_shapes_are_refused() -> None:
    anatomy = made_up_anatomy([16, 16])
    odd = dataclasses.replace(anatomy.layers[1], num_heads=8)
    with pytest.raises(InputError, match="one shape"):
        profile_device(
            tiny_model().config,
            dataclasses.replace(anatomy, layers=(anatomy.layers[0], odd)),
            device_id="here",
            device=CPU,
        )


@pytest.mark.parametrize("change", [{"batch": 0}, {"prompt_tokens": ()}, {"prompt_tokens": (0,)}, {"output_tokens": 0}])
def test_settings_that_measure_nothing_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(InputError, match="at least 1"):
        ProfileSettings(**change)  # type: ignore[arg-type]


def test_the_machine_is_described() -> None:
    found = describe_machine(CPU)
    assert isinstance(found, Machine)
    assert f"{torch.get_num_threads()} thread" in found.description
    assert f"torch {torch.__version__.split('+')[0]}" in found.description
    assert 0 < found.free_bytes <= found.memory_bytes
    assert machine.measure_flops_per_s(CPU, "F32") > 0
    assert machine.measure_bandwidth(CPU) > 0


def test_profiles_of_one_machine_are_joined() -> None:
    one, two = made_up_profile(anatomy=made_up_anatomy([32])), made_up_profile(anatomy=made_up_anatomy([64], other=7))
    both = one.joined_with(two)
    assert both.layers == (*one.layers, *two.layers)
    assert len(both.outside) == 1  # the rest of both is of one shape: the newer times count
    again = made_up_profile(anatomy=made_up_anatomy([32]), layer_ms=9.0)
    assert both.joined_with(again).layers == (*two.layers, *again.layers)
    elsewhere = again.model_copy(update={"machine": "another"})
    with pytest.raises(InputError, match=r"one machine.*--replace"):
        both.joined_with(elsewhere)


def test_a_file_that_is_no_profile_is_told_by_its_first_broken_field(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a valid device profile: id: Field required"):
        parse_profile("{}")
    with pytest.raises(InputError, match=r"not a valid device profile: document"):
        parse_profile("[")


def anatomy_with(**change: object) -> ModelAnatomy:
    return dataclasses.replace(made_up_anatomy([16]), **change)  # type: ignore[arg-type]


def test_a_dtype_that_nothing_computes_in_is_refused() -> None:
    with pytest.raises(InputError, match=r"dtype"):
        profile_device(tiny_model().config, anatomy_with(dtype="I8"), device_id="here", device=CPU)
