"""The latency benchmark on a tiny model: that each plan's prediction is held against that plan's own times."""

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import torch

from benchmarks import latency
from benchmarks.latency import RequestTimes, Sizes, run_requests
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Site, Sublayer
from pruning.anatomy.decoder_view import decoder_view
from pruning.arrays import IntArray
from pruning.devices.timing import machine
from pruning.devices.timing.profiling import ProfileSettings
from pruning.planning.latency_model import LatencyModel, LatencySource
from pruning.planning.workload import Workload
from tests.pruning.made_up import made_up_anatomy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

TINY = Sizes(
    hidden=32,
    ffn=64,
    layers=2,
    heads=4,
    kv_groups=2,
    vocabulary=100,
    vision_hidden=16,
    vision_layers=1,
    image_px=32,
    patch_px=16,
    profiled=ProfileSettings(prompt_tokens=(8, 16), output_tokens=6, seconds=0.0, min_rounds=2),
    timed=(Workload(prompt_tokens=10, output_tokens=3), Workload(prompt_tokens=14, output_tokens=5)),
    requests=1,
)


def test_every_plan_is_predicted_and_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(machine, "_MATRIX_BYTES", 2**16)
    monkeypatch.setattr(machine, "_REPEATS", 1)
    monkeypatch.setattr(latency, "PLANS", 3)
    rows, summary = latency.measure(TINY)
    assert [(row["plan"], row["prompt_tokens"], row["output_tokens"]) for row in rows] == [
        (plan, *lengths) for plan in range(3) for lengths in ((10, 3), (14, 5))
    ]
    assert rows[0]["widths"] == rows[1]["widths"] == [64, 64]
    for row, sparsity in zip(rows, (0.0, 0.0, 0.35, 0.35, 0.7, 0.7), strict=True):
        assert sparsity <= row["sparsity"] < sparsity + 0.1
        assert min(value for name, value in row.items() if name.endswith("_ms")) > 0
    assert summary["profile_smoothing"] >= 0


def price(widths: "Sequence[int]", workload: Workload) -> tuple[float, float]:
    """Milliseconds of a prefill and of a decode step: another one for each layer that is cut and each workload."""
    first, second = widths
    return workload.prompt_tokens * (100.0 + first + 3 * second), workload.output_tokens * (50.0 + 2 * first + second)


def nanoseconds(widths: "Sequence[int]", workload: Workload) -> tuple[int, int]:
    """The same."""
    prefill, decode = price(widths, workload)
    return round(prefill * 1e6), round(decode * 1e6)


def test_errors_are_of_the_same_plan_and_workload_there_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    visits: list[list[int]] = []

    class Known(LatencyModel):
        source, description = LatencySource.MEASURED, "made up"

        def __init__(self, device: SimpleNamespace, _anatomy: ModelAnatomy, workload: Workload) -> None:
            super().__init__(workload)
            self.slower = device.slower

        def site_phases_ns(self, site: Site, units: IntArray) -> tuple[IntArray, IntArray]:
            if site.sublayer is Sublayer.ATTENTION:
                return 0 * units, 0 * units
            widths = [[int(width), 0] if site.layer == 0 else [0, int(width)] for width in units]
            prefill, decode = zip(*(nanoseconds(row, self.workload) for row in widths), strict=True)
            fixed = nanoseconds([0, 0], self.workload)
            return self.slower * (np.array(prefill) - fixed[0]), self.slower * (np.array(decode) - fixed[1])

        def fixed_phases_ns(self) -> tuple[int, int]:
            prefill, decode = nanoseconds([0, 0], self.workload)
            return self.slower * prefill, self.slower * decode

    def run(
        model: "PreTrainedModel", inputs: dict[str, torch.Tensor], workload: Workload, requests: int
    ) -> RequestTimes:
        assert inputs["input_ids"].shape == (1, workload.prompt_tokens)
        assert requests == 2
        view = decoder_view(model)
        widths = [view.ffn_width(layer) for layer in range(2)]
        if workload is TINY.timed[0]:
            visits.append(widths)
        prefill, decode = price(widths, workload)
        if len(visits) > 3:  # back
            return RequestTimes((1.3 * prefill, 9.0 * prefill), (0.7 * decode, 0.7 * decode))
        return RequestTimes((1.1 * prefill, 0.9 * prefill), (0.9 * decode, 0.9 * decode))

    profiles = [
        SimpleNamespace(layers=[SimpleNamespace(smoothing=x, drift=x / 5)], slower=slower)
        for x, slower in ((0.25, 1), (0.5, 2))
    ]
    monkeypatch.setattr(latency, "PLANS", 3)
    monkeypatch.setattr(latency, "profile_device", lambda *_, **__: profiles.pop(0))
    monkeypatch.setattr(latency, "profiled_device", lambda found: found)
    monkeypatch.setattr(latency, "latency_model", Known)
    monkeypatch.setattr(latency, "run_requests", run)
    rows, summary = latency.measure(replace(TINY, requests=2))
    assert len({tuple(widths) for widths in visits}) == 3
    assert visits == [*visits[:3], *reversed(visits[:3])]
    for row in rows:
        # The medians of 0.9, 1.1, 1.3 and 9 times what was predicted, and of 0.9 and 0.7 times.
        assert row["prefill_error"] == pytest.approx(1 / 1.2 - 1)
        assert row["decode_error"] == pytest.approx(1 / 0.8 - 1)
        workload = Workload(prompt_tokens=row["prompt_tokens"], output_tokens=row["output_tokens"])
        predicted = (row["predicted_prefill_ms"], row["predicted_decode_ms"])
        assert predicted == pytest.approx(price(row["widths"], workload))
    assert len(rows) == 6
    assert summary["prefill_mape"] == pytest.approx(1 / 6)
    assert summary["decode_mape"] == summary["worst_error"] == pytest.approx(1 / 4)
    assert summary["latency_mape"] == pytest.approx(5 / 24)
    assert (summary["profile_smoothing"], summary["profile_drift"]) == (0.25, 0.05)
    assert summary["profile_repeat_mape"] == pytest.approx(1 / 2)


def test_a_request_is_a_prompt_and_steps_behind_it_after_one_that_warms_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    prompts = iter([50.0, 2.0, 4.0])

    class Model:
        device = torch.device("cpu")

        def __call__(self, **inputs: Any) -> SimpleNamespace:
            nonlocal clock
            is_prompt = "pixel_values" in inputs
            assert is_prompt != ("past_key_values" in inputs)
            clock += next(prompts) if is_prompt else 0.5
            return SimpleNamespace(logits=torch.zeros(1, 1, 7), past_key_values=())

    monkeypatch.setattr(latency, "_now", lambda _: clock)
    inputs = {"input_ids": torch.zeros(1, 3), "pixel_values": torch.zeros(1)}
    times = run_requests(cast("PreTrainedModel", Model()), inputs, Workload(prompt_tokens=3, output_tokens=5), 2)
    assert times.prefill_ms == pytest.approx((2000.0, 4000.0))
    assert times.decode_ms == pytest.approx((500.0, 500.0))
    assert clock == 56.0 + 3 * 4 * 0.5


def test_no_length_that_is_timed_was_profiled() -> None:
    sizes = Sizes()
    for workload in sizes.timed:
        assert workload.prompt_tokens not in sizes.profiled.lengths
        assert workload.output_tokens != sizes.profiled.output_tokens
        assert min(sizes.profiled.lengths) < workload.prompt_tokens < max(sizes.profiled.prompt_tokens)
    assert len({workload.output_tokens for workload in sizes.timed}) > 1


def test_plans_are_of_many_widths() -> None:
    anatomy = made_up_anatomy([5632] * 8)
    plans = latency.plans(anatomy)
    assert len(plans) == 12
    assert plans[0] == [5632] * 8
    for index, widths in enumerate(plans[1:], start=1):
        assert len(set(widths)) >= 3
        assert all(width % 8 == 0 for width in widths)
        assert 1 - sum(widths) / (8 * 5632) == pytest.approx(0.7 * index / 11, abs=1e-3)
