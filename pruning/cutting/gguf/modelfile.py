"""Ollama's Modelfile (https://docs.ollama.com/modelfile): how `ollama create` takes exported files."""

import os
from pathlib import Path

from pruning.atomic_file import replace_file
from pruning.checkpoints.file_errors import writing

MODELFILE_NAME = "Modelfile"


def write_modelfile(out: Path, mmproj: Path | None) -> Path | None:
    """Write the Modelfile beside the finished export `out`; None, and nothing is written, if there is one.

    The chat template is in `out`: Ollama takes its own version of it where it knows one like it (detectChatTemplate
    in its server/), and none else. Stop words are the tokens that end a turn or a text.
    Raises CheckpointError if it cannot be written.
    """
    path = out.parent / MODELFILE_NAME
    if os.path.lexists(path):
        return None
    files = [out] if mmproj is None else [out, mmproj]
    lines = [f"FROM {_reference(file, path.parent)}" for file in files]
    lines += [f'PARAMETER stop "{end}"' for end in _ends_in(out) if '"' not in end and end.strip()]
    with writing(path, what="Modelfile"):
        replace_file(path, ("\n".join(lines) + "\n").encode())
    return path


def _ends_in(file: Path) -> list[str]:
    """The tokens that end an answer, as the file says."""
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    tokens = fields["tokenizer.ggml.tokens"]
    ids = [fields[key].contents() for name in ("eot", "eos") if (key := f"tokenizer.ggml.{name}_token_id") in fields]
    return [str(tokens.contents(index)) for index in dict.fromkeys(ids)]


def _reference(file: Path, folder: Path) -> str:
    """Relative to the Modelfile, where it lies beside it."""
    return f"./{file.name}" if file.parent.resolve() == folder.resolve() else str(file.resolve())
