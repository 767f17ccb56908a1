"""The eyes of a checkpoint as a GGUF file of their own (mmproj): vision tower and projector, as llama.cpp's mtmd reads
them. Families that mtmd computes otherwise than transformers are refused by name.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from pruning.anatomy.gguf_types import StoredType, TensorType
from pruning.cutting.gguf.options import ClassToken
from pruning.cutting.gguf.tensors import Stored
from pruning.cutting.gguf.vision_gemma3 import gemma3_vision
from pruning.cutting.gguf.vision_internvl import internvl_vision
from pruning.cutting.gguf.vision_llava import llava_vision
from pruning.cutting.gguf.vision_parts import VisionPart
from pruning.cutting.gguf.vision_qwen2vl import qwen2vl_vision
from pruning.cutting.gguf.vision_qwen3vl import qwen3vl_vision
from pruning.cutting.gguf.vision_smolvlm import smolvlm_vision
from pruning.cutting.gguf.writer import GgufFile
from pruning.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_OTHERS = {
    "llava_next": ", which cuts pictures into tiles and puts a newline embedding after each row of patches, where "
    "llama.cpp puts none",
    "llava_onevision": ", which cuts pictures into tiles, scales their features down and puts newline embeddings "
    "between them, where llama.cpp does neither",
    "vipllava": ", whose projector has a norm",
}
FAMILIES = ("llava", "smolvlm", "idefics3", "internvl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3")
"""`model_type` of checkpoints whose vision part can be exported."""


def vision_file(
    folder: Path, config: "PreTrainedConfig", stored: Stored, wanted: TensorType, class_token: ClassToken
) -> tuple[GgufFile, tuple[str, ...]]:
    """What the mmproj file of the checkpoint in `folder` will hold, and where mtmd may differ from transformers.

    Raises:
        UnsupportedModelError: mtmd would not compute this tower, projector or way of cutting pictures up.
        CheckpointError: tensors or the image processor are missing, or not those of the config.
    """
    part = _part(folder, config, stored, wanted, class_token)
    return GgufFile("clip", part.metadata, part.tensors, StoredType(wanted.value)), part.notes


def _part(
    folder: Path, config: "PreTrainedConfig", stored: Stored, wanted: TensorType, class_token: ClassToken
) -> VisionPart:
    kind = config.model_type
    if kind == "llava":
        return llava_vision(folder, config, stored, wanted, class_token)
    if kind in ("smolvlm", "idefics3"):
        return smolvlm_vision(folder, config, stored, wanted)
    if kind in ("qwen2_vl", "qwen2_5_vl"):
        return qwen2vl_vision(folder, config, stored, wanted)
    if kind == "qwen3_vl":
        return qwen3vl_vision(folder, config, stored, wanted)
    if kind == "gemma3":
        return gemma3_vision(folder, config, stored, wanted)
    if kind == "internvl":
        return internvl_vision(folder, config, stored, wanted, class_token)
    raise UnsupportedModelError(
        "llama.cpp must see with the checkpoint's vision part as transformers does",
        values=f"model_type={kind!r}{_OTHERS.get(kind, '')}",
        remedy=f"Families with a vision part: {', '.join(FAMILIES)}. Export the language model alone, without --mmproj",
    )
