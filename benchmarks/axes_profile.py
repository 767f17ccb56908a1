"""This machine as a device: the profile that targets of time are priced by, measured once for each model and kept."""

import hashlib
import json
from pathlib import Path

from benchmarks.measured_code import measured_code
from lop.workflows.compute import compute_device
from lop.workflows.profiling import TimedModel
from pruning.atomic_file import replace_file
from pruning.checkpoints.anatomy_reader import load_config
from pruning.devices.device import profiled_device
from pruning.devices.latency import latency_model
from pruning.devices.profile import DeviceProfile, parse_profile
from pruning.devices.timing.profiling import ProfileSettings, profile_device
from pruning.planning.latency_model import LatencyModel
from pruning.planning.workload import Workload

WORKLOAD = Workload(batch=1, prompt_tokens=128, output_tokens=64)
"""What is limited in time: short enough for the context of the reference."""

SETTINGS = ProfileSettings(prompt_tokens=(64, 128), output_tokens=64, seconds=60.0)
MACHINE = "this-machine"


def machine_latency(checkpoint: Path, work: Path) -> LatencyModel:
    """What prices `WORKLOAD` on this machine for models of the shape of `checkpoint`.

    A profile in `work` is read again if the code that measures and reads profiles is the same.
    """
    model = TimedModel.of_folder(checkpoint)
    path = work / f"profile-{_key(model)}.json"
    profile = parse_profile(path.read_bytes(), stored=True) if path.is_file() else _measured(model)
    if not path.is_file():
        replace_file(path, json.dumps(profile.model_dump(mode="json")).encode())
    return latency_model(profiled_device(profile), model.anatomy, WORKLOAD)


def _measured(model: TimedModel) -> DeviceProfile:
    return profile_device(
        load_config(model.folder),
        model.anatomy,
        device_id=MACHINE,
        settings=SETTINGS,
        images=model.images(SETTINGS.batch),
        device=compute_device(),
    )


def _key(model: TimedModel) -> str:
    code = {file: digest for file, digest in measured_code().items() if file.startswith("pruning/devices/")}
    content = json.dumps([model.anatomy.fingerprint, model.anatomy.dtype, sorted(code.items()), repr(SETTINGS)])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
