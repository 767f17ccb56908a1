"""The latency benchmark from start to end on a tiny model: that it compares what it says. Not its figures."""

import pytest
import torch

from benchmarks import latency
from benchmarks.latency import Sizes
from pruning.devices import machine
from tests.pruning.made_up import made_up_anatomy

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
    prompt_tokens=12,
    output_tokens=3,
    profile_seconds=0.0,
    requests=1,
)


def test_every_plan_is_predicted_and_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(machine, "_MATRIX_BYTES", 2**16)
    monkeypatch.setattr(machine, "_REPEATS", 1)
    monkeypatch.setattr(latency, "PLANS", 3)
    rows, summary = latency.measure(TINY)
    assert [row["plan"] for row in rows] == [0, 1, 2]
    assert rows[0]["widths"] == [64, 64]
    for row, sparsity in zip(rows, (0.0, 0.35, 0.7), strict=True):
        assert sparsity <= row["sparsity"] < sparsity + 0.1
        assert row["prefill_error"] == row["predicted_prefill_ms"] / row["measured_prefill_ms"] - 1
        assert row["decode_error"] == row["predicted_decode_ms"] / row["measured_decode_ms"] - 1
        assert min(row["predicted_prefill_ms"], row["predicted_decode_ms"]) > 0
    errors = [abs(row[name]) for row in rows for name in ("prefill_error", "decode_error")]
    assert summary["latency_mape"] == pytest.approx(sum(errors) / 6)
    assert summary["worst_error"] == max(errors)


def test_plans_are_of_many_widths() -> None:
    anatomy = made_up_anatomy([5632] * 8)
    plans = latency.plans(anatomy)
    assert len(plans) == 12
    assert plans[0] == [5632] * 8
    for index, widths in enumerate(plans[1:], start=1):
        assert len(set(widths)) >= 3
        assert all(width % 8 == 0 for width in widths)
        assert 1 - sum(widths) / (8 * 5632) == pytest.approx(0.7 * index / 11, abs=1e-3)
