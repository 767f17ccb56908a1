"""How long a request takes on a device: by its measured profile where that covers the request, else by a roofline."""

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.devices.device import Device
from pruning.devices.measured import Coverage, MeasuredLatency, find_tables
from pruning.devices.roofline import RooflineLatency
from pruning.planning.latency_model import LatencyModel
from pruning.planning.workload import Workload


def latency_model(device: Device, anatomy: ModelAnatomy, workload: Workload) -> LatencyModel:
    """The best latency model of `device` for `workload` on models of `anatomy`.

    Measured, if the device's profile holds this model's layer shape and covers the workload; never extrapolated.
    Otherwise a roofline, of what was measured of the machine as a whole or of its data sheet; the description says
    which, and why.
    """
    found = find_tables(device, anatomy, workload)
    if isinstance(found, Coverage):
        return MeasuredLatency(device, anatomy, found, workload)
    model = RooflineLatency(device, anatomy, workload)
    if device.is_measured:
        model.description += f"; {found.reason}"
    return model
