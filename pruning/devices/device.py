"""One piece of hardware, in the figures that a roofline needs."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pruning.devices.profile import DeviceProfile

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Device:
    """One piece of hardware.

    Attributes:
        id: what a request names.
        name: the vendor's name.
        memory_bytes: memory that the accelerator can address.
        peak_flops_per_s: floating-point operations per second of a matrix product, a multiply-add counted as two, by
            the weights' safetensors dtype. Dense, never the figure for structured sparsity. From a data sheet they are
            what the hardware could do at most; from a profile, what it did.
        bandwidth_bytes_per_s: bytes per second out of that memory, likewise.
        source: the data sheet, or the machine that was measured.
        profile: what `lop device profile` measured on it; None for a device of the catalogue.
    """

    id: str
    name: str
    memory_bytes: int
    peak_flops_per_s: Mapping[str, float] = field(hash=False)
    bandwidth_bytes_per_s: float
    source: str
    profile: DeviceProfile | None = field(default=None, hash=False)

    @property
    def is_measured(self) -> bool:
        """Its figures come from a profile of the machine itself."""
        return self.profile is not None

    def peak_flops_of(self, dtype: str) -> float:
        """The peak for weights of `dtype`: that of F32 for a dtype that the hardware has no faster units for."""
        return self.peak_flops_per_s.get(dtype, self.peak_flops_per_s["F32"])


def profiled_device(profile: DeviceProfile) -> Device:
    """The device that `profile` was measured on."""
    return Device(
        id=profile.id,
        name=profile.name,
        memory_bytes=profile.memory_bytes,
        peak_flops_per_s={str(dtype): figure for dtype, figure in profile.flops_per_s.items()},
        bandwidth_bytes_per_s=profile.bandwidth_bytes_per_s,
        source=f"measured on {profile.machine}",
        profile=profile,
    )
