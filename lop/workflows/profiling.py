"""Measuring the machine at hand with a model's own layers, and registering what came of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lop.workflows.compute import compute_device
from lop.workflows.devices import Devices, find_profile
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.devices.catalogue import check_not_in_catalogue
from pruning.devices.profile import DeviceProfile, check_device_id, check_same_machine
from pruning.errors import DatasetError

if TYPE_CHECKING:
    from pruning.devices.timing.profiling import ProfileSettings
    from storage.contract import Catalogue

_IMAGE_PX = 336
"""Side of the picture that vision towers are timed with; the processor scales it to what they take."""


@dataclass(frozen=True)
class TimedModel:
    """A dense checkpoint, of which config, headers and processor are read, and no weights."""

    folder: Path
    anatomy: ModelAnatomy

    @classmethod
    def of_folder(cls, folder: Path) -> "TimedModel":
        """Raises CheckpointError or UnsupportedModelError if `folder` holds no dense checkpoint of a known family."""
        from pruning.checkpoints.anatomy_reader import read_anatomy

        return cls(folder, read_anatomy(folder))

    @classmethod
    def registered(cls, repository: "Catalogue", model_id: str) -> "TimedModel":
        """Raises NotFoundError if there is no such model."""
        record = repository.get_model(model_id)
        return cls(Path(record.path), record.anatomy)

    def images(self, batch: int) -> dict[str, Any] | None:
        """What the checkpoint's processor makes of `batch` prompts with a picture each; None: it is a language model.

        Raises CheckpointError if the folder has no processor, DatasetError if its chat template takes no pictures.
        """
        from PIL import Image

        from pruning.checkpoints.loading import load_processor
        from pruning.checkpoints.processor import process, takes_images

        processor = load_processor(self.folder)
        if not takes_images(processor):
            return None
        content = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
        picture = Image.effect_noise((_IMAGE_PX, _IMAGE_PX), 64.0).convert("RGB")
        try:
            text = str(processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False))
            return process(processor, [text] * batch, [picture] * batch)
        except Exception as error:
            raise DatasetError(
                "the processor's chat template must take a user's message with a picture",
                values=f"{self.folder}: {error}",
            ) from error


def measure_machine(
    devices: Devices,
    device_id: str,
    model: TimedModel,
    settings: "ProfileSettings",
    *,
    name: str | None = None,
    replace: bool = False,
    on_step: Callable[[int, int], None] | None = None,
) -> DeviceProfile:
    """Measure this machine with `model` and register the profile as `device_id`.

    Tables that an earlier profile of the id has for other shapes and batches are kept, unless `replace`.

    Raises:
        ConflictError: the catalogue has a device of this id.
        InputError: the id stands for another machine, or as `profile_device`; before anything is measured.
    """
    from pruning.checkpoints.anatomy_reader import load_config
    from pruning.devices.timing.machine import describe_machine
    from pruning.devices.timing.profiling import profile_device

    check_device_id(device_id)
    check_not_in_catalogue(device_id)
    device = compute_device()
    earlier = None if replace else find_profile(devices, device_id)
    if earlier is not None:
        check_same_machine(device_id, earlier.machine, describe_machine(device).description)
    profile = profile_device(
        load_config(model.folder),
        model.anatomy,
        device_id=device_id,
        name=name,
        settings=settings,
        images=model.images(settings.batch),
        device=device,
        on_step=on_step,
    )
    if earlier is not None:
        profile = earlier.joined_with(profile)
    devices.register(profile)
    return profile
