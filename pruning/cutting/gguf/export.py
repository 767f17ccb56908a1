"""From a checkpoint folder to GGUF files: everything is checked first, then written in one pass."""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pruning.anatomy.gguf_types import StoredType, TensorType
from pruning.checkpoints.anatomy_reader import load_config
from pruning.checkpoints.headers import stored_tensors
from pruning.checkpoints.loading import PLAN_NAME
from pruning.cutting.gguf.decoder_layers import LayerSizes
from pruning.cutting.gguf.language_model import LanguageModel, language_model
from pruning.cutting.gguf.options import ClassToken
from pruning.cutting.gguf.output_files import check_outputs, write_files
from pruning.cutting.gguf.tensor_types import require_gguf
from pruning.cutting.gguf.tokenizer_check import EncodingDifference, check_vocabulary
from pruning.cutting.gguf.tokenizer_reader import read_vocabulary
from pruning.cutting.gguf.vision_tower import vision_file
from pruning.cutting.gguf.vocabulary import Vocabulary
from pruning.cutting.gguf.writer import GgufFile, Value
from pruning.errors import PlanError
from pruning.planning.plan import PruningPlan


@dataclass(frozen=True, slots=True)
class GgufExport:
    """What was written.

    Attributes:
        architecture: "deci" for layers of different sizes, "llama" for equal ones.
        sizes: of every layer.
        types: how many tensors of the language model's file have each type of ggml, by its name.
        num_f16_fallbacks: matrices whose rows q8_0 does not fit, written as f16.
        file_bytes: of the language model's file.
        mmproj_bytes: of the vision part's, 0 if none was asked for.
        encoding_differences: texts with special tokens, or spaces at the beginning, that llama.cpp encodes otherwise
            than transformers; None if it was not asked.
        notes: where llama.cpp may differ from transformers.
    """

    architecture: str
    sizes: LayerSizes
    types: Mapping[str, int]
    num_f16_fallbacks: int
    file_bytes: int
    mmproj_bytes: int
    encoding_differences: tuple[EncodingDifference, ...] | None
    notes: tuple[str, ...]

    @property
    def num_tensors(self) -> int:
        """In the language model's file."""
        return sum(self.types.values())


def export_gguf(
    folder: str | Path,
    out: str | Path,
    *,
    tensor_type: TensorType = TensorType.F16,
    mmproj: str | Path | None = None,
    context_length: int | None = None,
    pre_tokenizer: str | None = None,
    class_token: ClassToken = ClassToken.LAST,
    checks_encoding: bool = True,
    beside: Mapping[Path, bytes] | None = None,
    on_bytes: Callable[[int, int], None] | None = None,
) -> GgufExport:
    """Write the language model of the checkpoint in `folder`, dense or pruned, to the new file `out`.

    Weights that the folder holds in 8 or 4 bits are q8_0 or q4_0 (`packed_blocks`), all other matrices `tensor_type`.
    With `mmproj`, the vision tower and projector go to that new file (`vision_tower.FAMILIES`). Nothing is
    written before everything is known to be representable; the files appear whole or not at all; a block of one tensor
    is in memory at a time. `class_token` says which llama.cpp will run the vision part, see `ClassToken`. With
    `checks_encoding` and llama-cpp-python installed, llama.cpp must encode text as transformers does.
    `beside`: new small files, and what they hold, that appear with the others. `on_bytes(done, total)` is told of
    progress.

    Raises:
        MissingExtraError: the gguf package is not installed.
        CheckpointError: the folder is damaged, an output exists or cannot be written, another run writes it.
        UnsupportedModelError: llama.cpp would compute something else; the message names what.
    """
    require_gguf()
    folder, out = Path(folder), Path(out)
    outputs = [out] if mmproj is None else [out, Path(mmproj)]
    check_outputs([*outputs, *(beside or {})])
    stored = stored_tensors(folder)
    config = load_config(folder)
    model = language_model(config, stored, tensor_type, context_length=context_length)
    vocabulary = read_vocabulary(folder, model.vocab_size, pre_tokenizer=pre_tokenizer)
    notes = vocabulary.notes + model.notes
    parts = [_language_file(folder, model, vocabulary)]
    if mmproj is not None:
        vision, of_vision = vision_file(folder, config, stored, tensor_type, class_token)
        parts.append(vision)
        notes += of_vision
    differences = check_vocabulary(folder, parts[0]) if checks_encoding else None
    sizes = write_files(list(zip(parts, outputs, strict=True)), on_bytes, beside)
    return GgufExport(
        architecture=model.architecture,
        sizes=model.sizes,
        types=dict(Counter(tensor.stored.name for tensor in model.tensors)),
        num_f16_fallbacks=_num_fallbacks(parts) if tensor_type is TensorType.Q8_0 else 0,
        file_bytes=sizes[0],
        mmproj_bytes=sum(sizes[1:]),
        encoding_differences=differences,
        notes=notes,
    )


def _num_fallbacks(parts: list[GgufFile]) -> int:
    return sum(tensor.stored is StoredType.F16 for part in parts for tensor in part.tensors)


def _language_file(folder: Path, model: LanguageModel, vocabulary: Vocabulary) -> GgufFile:
    metadata: dict[str, Value] = {
        "general.type": "model",
        "general.name": folder.resolve().name,
        **model.metadata,
        f"{model.architecture}.vocab_size": model.vocab_size,
        **vocabulary.metadata(),
    }
    # For whoever looks the model up later: sizes are the config's, so a plan that cannot be read hinders nothing.
    with suppress(PlanError):
        metadata["lop.plan_id"] = PruningPlan.load(folder / PLAN_NAME).plan_id
    types = Counter(tensor.stored for tensor in model.tensors if len(tensor.shape) > 1)
    return GgufFile(model.architecture, metadata, model.tensors, types.most_common(1)[0][0])
