"""Tensor-type files of llama.cpp's quantiser: read, written, and made into one type for each tensor of a file.

The format (tools/quantize/quantize.cpp, `parse_tensor_type_file`): words `NAME=TYPE` between white space, without
comments; NAME is a regular expression in lower case that is looked for in tensor names. Which of two that fit counts
depends on llama.cpp's version: the last (ggml-org/llama.cpp#14572) or the first (since #18952). So what it is given
from here names each tensor once, and in full.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from pruning.errors import InputError


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
        if not pattern or name.upper() not in ggml_types():
            raise InputError(
                "every line must be PATTERN=TYPE, a regular expression and a type of ggml",
                values=f"{path}, line {number}: {line.strip()!r}",
                remedy=f"Types: {', '.join(sorted(x.lower() for x in ggml_types()))}",
            )
        found.setdefault(pattern, name.upper())
    return found


def types_by_name(
    shapes: Mapping[str, tuple[int, ...]], patterns: Mapping[str, str], planned: Mapping[str, str]
) -> dict[str, str]:
    """The ggml type of each matrix that is named: of the first of `patterns` that is found in its name, else of
    `planned`, by its name. Vectors, which are never quantised, are left out.

    Args:
        shapes: of all tensors, by name.
        patterns: regular expression -> type, of a user.
        planned: name -> type, of a plan.
    """
    assert planned.keys() <= shapes.keys()
    compiled = [(re.compile(pattern), kind) for pattern, kind in patterns.items()]
    chosen = {
        name: next((kind for pattern, kind in compiled if pattern.search(name)), planned.get(name))
        for name, shape in shapes.items()
        if len(shape) > 1
    }
    return {name: kind.upper() for name, kind in chosen.items() if kind is not None}


def exact_pattern(name: str) -> str:
    """What finds the tensor `name`, and no other that it is a part of."""
    return f"^{re.escape(name)}$"


def tensor_type_file(types: Mapping[str, str]) -> str:
    """What `llama-quantize --tensor-type-file` takes, of the types of tensors by name."""
    return "".join(f"{exact_pattern(name)}={kind}\n" for name, kind in types.items())


def ggml_types() -> dict[str, int]:
    """ggml's types that matrices can be stored as, by name."""
    from gguf import GGMLQuantizationType

    return {x.name: int(x) for x in GGMLQuantizationType if x.name[0] in "QFB"}
