"""What llama.cpp can be given of a checkpoint, as the export's own checks say it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pruning.anatomy.gguf_types import TensorType
from pruning.cutting.gguf.language_model import language_model
from pruning.cutting.gguf.layouts import LAYOUTS
from pruning.cutting.gguf.tensors import Stored
from pruning.cutting.gguf.tokenizer_reader import read_vocabulary
from pruning.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True, slots=True)
class Exportable:
    """What `lop export gguf` would do with the language model of a folder.

    Attributes:
        refusal: its message; None: it writes the file.
        context: what `--context` must say for that; None: nothing.
        is_filled_up: whether layers of several sizes become layers of one.
    """

    refusal: str | None = None
    context: int | None = None
    is_filled_up: bool = False


def exportable(folder: Path, config: "PreTrainedConfig", stored: Stored) -> Exportable:
    """Ask the export's own checks: of the decoder, and of the tokenizer in `folder`. Nothing is written, and no matrix
    is read."""
    context = None
    try:
        try:
            model = language_model(config, stored, TensorType.F16)
        except UnsupportedModelError as refused:
            context = getattr(config.get_text_config(decoder=True), "sliding_window", None)
            if not isinstance(context, int):
                raise
            try:
                model = language_model(config, stored, TensorType.F16, context_length=context)
            except UnsupportedModelError:
                raise refused from None  # the window was not why
        read_vocabulary(folder, model.vocab_size)
    except (CheckpointError, UnsupportedModelError) as error:
        return Exportable(refusal=str(error))
    layout = LAYOUTS[config.get_text_config(decoder=True).model_type]
    recorded = getattr(config.get_text_config(decoder=True), "is_heterogeneous", False)
    return Exportable(context=context, is_filled_up=recorded and not layout.per_layer)
