"""llama.cpp's own quantiser on an exported file: the K-quants that ggml's Python package only reads.

`llama_model_quantize` (include/llama.h) chooses a type for each matrix from the file type that is asked for, and
another where a row is no multiple of 256 values, which K-quants need: plans of such widths avoid that.
"""

import ctypes
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
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
from pruning.cutting.streaming.publish import publish_files
from pruning.errors import CheckpointError, InputError


def read_tensor_types(path: str | Path) -> dict[str, str]:
    """A tensor-type file, as `llama-quantize --tensor-type-file` takes it: a line `PATTERN=TYPE`. Here, and not there,
    `#` begins a comment.

    A pattern is a regular expression that is looked for in tensor names (`blk.3.ffn_down`), the first that fits counts;
    a type is ggml's (`q6_k`).

    Raises InputError that names the line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("the tensor-type file must be text", values=f"{path}: {error}") from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        told = line.partition("#")[0].strip()
        if not told:
            continue
        pattern, _, name = (part.strip() for part in told.rpartition("="))
        try:
            re.compile(pattern)
        except re.error:
            pattern = ""
        if not pattern or name.upper() not in _types():
            raise InputError(
                "every line must be PATTERN=TYPE, a regular expression and a type of ggml",
                values=f"{path}, line {number}: {line.strip()!r}",
                remedy=f"Types: {', '.join(sorted(x.lower() for x in _types()))}",
            )
        found[pattern] = name.upper()
    return found


def export_quantised(
    folder: str | Path,
    out: str | Path,
    wanted: Quantisation,
    *,
    tensor_types: Mapping[str, str] | None = None,
    mmproj: str | Path | None = None,
    **choices: Any,
) -> GgufExport:
    """As `export_gguf`, and then llama.cpp's quantiser on the language model; the vision part stays f16.

    `tensor_types`: pattern -> type, before what `wanted` chooses. The f16 file lies beside `out` meanwhile, and is gone
    afterwards. `out` appears whole or not at all.

    Raises:
        MissingExtraError: llama-cpp-python is not installed.
        UnsupportedModelError: weights are in few bits already.
        CheckpointError, UnsupportedModelError: as `export_gguf`; or llama.cpp does not quantise the file.
    """
    require_llama_cpp()
    out = Path(out)
    check_outputs([out] if mmproj is None else [out, Path(mmproj)])
    check_plain(Path(folder), stored_tensors(Path(folder)))
    with writing(out, what="export"), TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as place:
        whole, quantised = Path(place) / "f16.gguf", Path(place) / out.name
        export = export_gguf(folder, whole, tensor_type=TensorType.F16, mmproj=mmproj, **choices)
        try:
            _quantise(whole, quantised, wanted, tensor_types or {})
            types = _types_in(quantised)
            size = quantised.stat().st_size
            publish_files({quantised: out})
        except BaseException:
            if mmproj is not None:
                Path(mmproj).unlink(missing_ok=True)
            raise
    return replace(export, file_bytes=size, types=types)


def _quantise(whole: Path, out: Path, wanted: Quantisation, tensor_types: Mapping[str, str]) -> None:
    from llama_cpp import llama_cpp

    llama_cpp.llama_backend_init()
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{wanted}")
    settings.nthread = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    overrides = (llama_cpp.llama_model_tensor_override * (len(tensor_types) + 1))()  # one without a pattern ends them
    for place, (pattern, name) in enumerate(tensor_types.items()):
        overrides[place].pattern, overrides[place].type = pattern.encode(), _types()[name]
    if tensor_types:
        settings.tt_overrides = ctypes.cast(overrides, type(settings.tt_overrides))
    if llama_cpp.llama_model_quantize(str(whole).encode(), str(out).encode(), ctypes.byref(settings)):
        raise CheckpointError("llama.cpp must quantise the file", values=f"{whole} as {wanted}")


def _types() -> dict[str, int]:
    """ggml's types that matrices can be stored as, by name."""
    from gguf import GGMLQuantizationType

    return {x.name: int(x) for x in GGMLQuantizationType if x.name[0] in "QFB"}


def _types_in(file: Path) -> dict[str, int]:
    from gguf import GGUFReader

    return dict(Counter(tensor.tensor_type.name for tensor in GGUFReader(file).tensors))
