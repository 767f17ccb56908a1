"""Processors of checkpoint folders as the hub has them, by Pillow and NumPy alone, and for pictures alone.

`AutoProcessor` builds everything that a processor can do. Those of Qwen-VL, InternVL, LLaVA-OneVision and SmolVLM also
take videos, which wants torchvision (and num2words); image processors are of torchvision where it is installed, with
other pixels than Pillow's. Pictures need neither, and must be the same numbers wherever they are measured.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pruning.errors import CheckpointError, MissingExtraError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

_NAMING_FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
)
"""Where `processor_class` may stand, in transformers' order."""
_PARTS = {"image_processor", "tokenizer", "video_processor"}
_LOCAL: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}


class _NoVideos:
    """In the place of a video processor: what processors look at although there is no video."""

    model_input_names: tuple[str, ...] = ()
    num_frames = fps = None


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The folder's tokenizer, never that of mistral-common, which transformers prefers where it is installed."""
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, mistral_format=False, **_LOCAL)
    return tokenizer


def load_image_text_processor(folder: Path, config: "PreTrainedConfig") -> "ProcessorMixin":
    """The folder's processor for pictures and text.

    Raises:
        CheckpointError: the folder names no processor, or one that takes something else.
        MissingExtraError: its class cannot be had without a package.
        Exception: whatever transformers raises on the folder's files.
    """
    from transformers import AutoImageProcessor, PreTrainedTokenizerFast

    known = _processor_class(folder, config)
    attributes = known.get_attributes()
    if not {"image_processor", "tokenizer"} <= set(attributes) <= _PARTS:
        raise CheckpointError(
            "the folder must hold a processor for images and text",
            values=f"{folder}: {known.__name__} has {', '.join(attributes)}",
        )
    # As transformers does: folders with this processor name tokenizer classes that are not theirs.
    is_pixtral = "PixtralProcessor" in known.__name__
    parts: dict[str, Any] = {
        "image_processor": AutoImageProcessor.from_pretrained(folder, backend="pil", **_LOCAL),
        "tokenizer": PreTrainedTokenizerFast.from_pretrained(folder, **_LOCAL)
        if is_pixtral
        else load_tokenizer(folder),
        "video_processor": _NoVideos(),
    }
    settings, _ = known.get_processor_dict(folder, local_files_only=True)
    settings = {name: value for name, value in settings.items() if name not in _PARTS}
    with _no_need_of_num2words(sys.modules[known.__module__]):
        processor: ProcessorMixin = _for_pictures(known).from_args_and_dict([parts[x] for x in attributes], settings)
    if processor.chat_template is None:  # older folders have it beside the tokenizer alone
        processor.chat_template = parts["tokenizer"].chat_template
    return processor


def _for_pictures(known: "type[ProcessorMixin]") -> "type[ProcessorMixin]":
    """`known`, which takes `_NoVideos` for a video processor."""

    class ForPictures(known):  # type: ignore[misc]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if isinstance(argument, _NoVideos):
                return _NoVideos
            return super().check_argument_for_proper_class(argument_name, argument)

        def to_dict(self) -> dict[str, Any]:
            return {name: value for name, value in super().to_dict().items() if name != "video_processor"}

    ForPictures.__name__ = ForPictures.__qualname__ = known.__name__
    return ForPictures


def _processor_class(folder: Path, config: "PreTrainedConfig") -> "type[ProcessorMixin]":
    """The class that the folder's files name, else the one of the model."""
    from transformers import ProcessorMixin
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES, processor_class_from_name

    names = [_named_in(folder / file) for file in _NAMING_FILES]
    for name in (*names, getattr(config, "processor_class", None), PROCESSOR_MAPPING_NAMES.get(config.model_type)):
        found = processor_class_from_name(name) if isinstance(name, str) else None
        if getattr(found, "is_dummy", False):  # transformers' stand-in for a class that wants a package
            found = _class_with_pillow(str(name))
        if isinstance(found, type) and issubclass(found, ProcessorMixin):
            return found
    raise CheckpointError(
        "the folder must hold a processor for images and text",
        values=f"{folder}: {', '.join(filter(None, names)) or 'no processor_class'}",
        remedy="Copy preprocessor_config.json or processor_config.json of the model there",
    )


def _named_in(file: Path) -> str | None:
    if not file.is_file():
        return None
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError("a processor's settings must be readable JSON", values=f"{file}: {error}") from error
    name = document.get("processor_class") if isinstance(document, dict) else None
    return name if isinstance(name, str) else None


def _class_with_pillow(name: str) -> Any:
    """The processor class `name`, whose module asks the one of torchvision for what Pillow's has, too (Pixtral's).

    Raises MissingExtraError if it cannot be imported like that.
    """
    from transformers.models.auto.configuration_auto import model_type_to_module_name
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    families = {model_type_to_module_name(family) for family, known in PROCESSOR_MAPPING_NAMES.items() if known == name}
    for family in sorted(families):
        package = f"transformers.models.{family}"
        if find_spec(f"{package}.processing_{family}") is None:
            continue
        wanted = f"{package}.image_processing_{family}"
        try:
            sys.modules[wanted] = import_module(f"{package}.image_processing_pil_{family}")
            return getattr(import_module(f"{package}.processing_{family}"), name)
        except (ImportError, AttributeError):
            continue
        finally:
            sys.modules.pop(wanted, None)
    raise MissingExtraError(
        "`torchvision` must be installed for this processor",
        values=name,
        remedy="Install the build that fits your torch: pip install torchvision",
    )


@contextmanager
def _no_need_of_num2words(module: ModuleType) -> Iterator[None]:
    """SmolVLM's processor cannot be built without num2words, with which it writes how many frames a video has."""
    if getattr(module, "num2words", True) is not None:
        yield
        return
    module.num2words = str  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.num2words = None  # type: ignore[attr-defined]
