"""Hardware: what the data sheets say of common devices, what was measured on others, and how long requests take."""

from pruning.devices.catalogue import DEVICES
from pruning.devices.device import Device

__all__ = ["DEVICES", "Device"]
