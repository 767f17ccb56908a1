import pytest

from pruning.devices.catalogue import DEVICES
from pruning.devices.device import profiled_device
from tests.pruning.made_up_devices import made_up_profile


def test_every_entry_is_plausible() -> None:
    assert len(DEVICES) >= 16
    for device in DEVICES.values():
        assert device.source
        assert not device.is_measured
        assert 2**32 <= device.memory_bytes <= 2**38
        assert 1e10 <= device.bandwidth_bytes_per_s <= 1e13
        assert set(device.peak_flops_per_s) <= {"F32", "F16", "BF16"}
        # No tensor core of these does over 40 times what the CUDA cores do, and none of them is slower.
        f32, f16 = device.peak_flops_of("F32"), device.peak_flops_of("F16")
        assert 1e11 <= f32 <= f16 <= 40 * f32


@pytest.mark.parametrize(
    ("device_id", "f16", "bandwidth"),
    [("t4", 65e12, 300e9), ("l4", 121e12, 300e9), ("a100-40gb", 312e12, 1555e9), ("h100-80gb", 989.5e12, 3350e9)],
)
def test_figures_are_dense_ones(device_id: str, f16: float, bandwidth: float) -> None:
    device = DEVICES[device_id]
    assert (device.peak_flops_of("F16"), device.bandwidth_bytes_per_s) == (f16, bandwidth)


def test_a_dtype_without_units_of_its_own_runs_at_the_rate_of_f32() -> None:
    assert DEVICES["t4"].peak_flops_of("BF16") == DEVICES["t4"].peak_flops_of("F32") == 8.1e12
    assert DEVICES["laptop-16gb"].peak_flops_of("F16") == 384e9


def test_a_profile_is_a_device() -> None:
    device = profiled_device(made_up_profile("bench"))
    assert (device.id, device.name, device.memory_bytes) == ("bench", "Test bench", 8 * 2**30)
    assert (device.peak_flops_of("F32"), device.bandwidth_bytes_per_s) == (1e11, 1e10)
    assert device.source == "measured on a made-up processor, 2 threads"
    assert device.is_measured
    assert hash(device) == hash(profiled_device(made_up_profile("bench")))
