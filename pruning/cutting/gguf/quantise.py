"""llama.cpp's own quantiser on an exported file: the K-quants that ggml's Python package only reads.

`llama_model_quantize` (include/llama.h) chooses a type for each matrix from the file type that is asked for. Most file
types are mixtures, which give some layers more bits (`use_more_bits` of src/llama-quant.cpp: in Q4_K_M, values and down
projections of the first and last eighth of the layers and of every third between are q6_k), and where a row is no
multiple of 256 values, which K-quants need, another type takes their place.

A type that is asked for of a tensor goes before all that, but not in every version of llama.cpp: some pass it over
where the mixture's own type does not fit the rows (ggml-org/llama.cpp#14995, until #18952), some where it is the file
type's own (#22544, until #22572). So what was written is read back.
"""

import ctypes
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pruning.anatomy.gguf_types import TensorType
from pruning.checkpoints.file_errors import writing
from pruning.checkpoints.headers import stored_tensors
from pruning.cutting.gguf.export import GgufExport, export_gguf
from pruning.cutting.gguf.llama_runtime import require_llama_cpp
from pruning.cutting.gguf.options import Quantisation
from pruning.cutting.gguf.output_files import check_outputs
from pruning.cutting.gguf.planned_types import check_plain
from pruning.cutting.gguf.type_files import exact_pattern, ggml_types, types_by_name
from pruning.cutting.streaming.publish import publish_files
from pruning.errors import CheckpointError

PLAIN_FILE_TYPES = (Quantisation.Q8_0, Quantisation.Q4_0)
"""Those that are no mixtures and have blocks of 32 values: with these, every version gives tensors what was asked for
(without an importance matrix, which is never given here)."""


def export_quantised(
    folder: str | Path,
    out: str | Path,
    wanted: Quantisation,
    *,
    tensor_types: Mapping[str, str] | None = None,
    planned: Mapping[str, str] | None = None,
    mmproj: str | Path | None = None,
    **choices: Any,
) -> GgufExport:
    """As `export_gguf`, and then llama.cpp's quantiser on the language model; the vision part stays f16.

    The f16 file lies beside `out` meanwhile, and is gone afterwards. All files appear whole or none does.

    Args:
        wanted: the file type, which decides what nothing else names.
        tensor_types: pattern -> type, as `read_tensor_types`; of a tensor that several find, the first one's.
        planned: name of a tensor -> type, as `planned_types`, where no pattern finds it.

    Raises:
        MissingExtraError: llama-cpp-python is not installed.
        UnsupportedModelError: weights are in few bits already.
        CheckpointError, UnsupportedModelError: as `export_gguf`; or llama.cpp does not quantise the file, or otherwise
            than it is asked to.
    """
    require_llama_cpp()
    out = Path(out)
    check_outputs([out] if mmproj is None else [out, Path(mmproj)])
    check_plain(Path(folder), stored_tensors(Path(folder)))
    with writing(out, what="export"), ExitStack() as stack:
        place = _hidden_folder(out, stack)
        whole, quantised = place / "f16.gguf", place / out.name
        seen = None if mmproj is None else _hidden_folder(Path(mmproj), stack) / "mmproj.gguf"
        export = export_gguf(folder, whole, tensor_type=TensorType.F16, mmproj=seen, **choices)
        shapes = {name: tensor.shape for name, tensor in _tensors_in(whole).items()}
        types = types_by_name(shapes, tensor_types or {}, planned or {})
        _quantise(whole, quantised, wanted, types)
        found = _tensors_in(quantised)
        _check_types(found, types, wanted)
        size = quantised.stat().st_size
        # The language model last: where it is, all is.
        publish_files({**({} if seen is None or mmproj is None else {seen: Path(mmproj)}), quantised: out})
    return replace(export, file_bytes=size, types=dict(Counter(tensor.kind for tensor in found.values())))


def _hidden_folder(out: Path, stack: ExitStack) -> Path:
    return Path(stack.enter_context(TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent)))


def _quantise(whole: Path, out: Path, wanted: Quantisation, types: Mapping[str, str]) -> None:
    """`types`: name of a tensor -> ggml's type."""
    from llama_cpp import llama_cpp

    llama_cpp.llama_backend_init()
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{wanted}")
    settings.nthread = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    overrides = (llama_cpp.llama_model_tensor_override * (len(types) + 1))()  # one without a pattern ends them
    for place, (name, kind) in enumerate(types.items()):
        overrides[place].pattern, overrides[place].type = exact_pattern(name).encode(), ggml_types()[kind]
    if types:
        settings.tt_overrides = ctypes.cast(overrides, type(settings.tt_overrides))
    if llama_cpp.llama_model_quantize(str(whole).encode(), str(out).encode(), ctypes.byref(settings)):
        raise CheckpointError("llama.cpp must quantise the file", values=f"{whole} as {wanted}")


@dataclass(frozen=True, slots=True)
class _Tensor:
    """What a file says of a tensor: ggml's type and, as in Python, the shape [..., values of a row]."""

    kind: str
    shape: tuple[int, ...]


def _tensors_in(file: Path) -> dict[str, _Tensor]:
    from gguf import GGUFReader

    return {
        x.name: _Tensor(x.tensor_type.name, tuple(int(extent) for extent in reversed(x.shape)))
        for x in GGUFReader(file).tensors
    }


def _check_types(found: Mapping[str, _Tensor], types: Mapping[str, str], wanted: Quantisation) -> None:
    """Raises CheckpointError if a tensor is of another type than `types` says, and its rows would fit that one."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    fitting = {
        name: kind
        for name, kind in types.items()
        if found[name].shape[-1] % GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0] == 0
    }
    if other := [name for name, kind in fitting.items() if found[name].kind != kind]:
        first = other[0]
        newer = "install a newer llama-cpp-python"
        plain = " or ".join(PLAIN_FILE_TYPES)
        raise CheckpointError(
            "llama.cpp must give tensors the types that are asked for",
            values=f"{len(other)} of {len(fitting)} have others with --quantise {wanted}, the first {first}: "
            f"{found[first].kind.lower()} instead of {fitting[first].lower()}",
            remedy=newer.capitalize()
            if wanted in PLAIN_FILE_TYPES
            else f"Take --quantise {plain}, which mix no types of their own into the layers; or {newer}",
        )
