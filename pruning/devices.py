"""The devices a plan can name as its target.

Today a device is recorded in the plan; memory figures are the data sheets' and will bound hardware budgets.
"""

from dataclasses import dataclass

from pruning.errors import NotFoundError

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Device:
    """One piece of hardware.

    Attributes:
        id: what a request names.
        name: the vendor's name.
        memory_bytes: memory that the accelerator can address, by the data sheet.
        source: the data sheet.
    """

    id: str
    name: str
    memory_bytes: int
    source: str


_CATALOGUE = (
    Device("jetson-orin-nano-8gb", "NVIDIA Jetson Orin Nano 8GB", 8 * GIB, "NVIDIA Jetson Orin Nano Series data sheet"),
    Device("jetson-orin-nx-16gb", "NVIDIA Jetson Orin NX 16GB", 16 * GIB, "NVIDIA Jetson Orin NX Series data sheet"),
    Device("jetson-agx-orin-64gb", "NVIDIA Jetson AGX Orin 64GB", 64 * GIB, "NVIDIA Jetson AGX Orin data sheet"),
    Device("laptop-16gb", "Laptop with 16 GB of memory", 16 * GIB, "nominal"),
    Device("l4", "NVIDIA L4", 24 * GIB, "NVIDIA L4 data sheet"),
    Device("a100-80gb", "NVIDIA A100 80GB", 80 * GIB, "NVIDIA A100 data sheet"),
    Device("h100-80gb", "NVIDIA H100 80GB", 80 * GIB, "NVIDIA H100 data sheet"),
)

DEVICES: dict[str, Device] = {device.id: device for device in _CATALOGUE}


def get_device(device_id: str) -> Device:
    """The catalogue's entry; raises NotFoundError that lists the known ids."""
    try:
        return DEVICES[device_id]
    except KeyError:
        raise NotFoundError(
            "the device must be in the catalogue", values=repr(device_id), remedy=f"Known devices: {', '.join(DEVICES)}"
        ) from None
