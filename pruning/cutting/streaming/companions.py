"""What belongs to a checkpoint besides weights and config: tokenizer, processor, templates, licence, model card."""

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pruning.checkpoints.file_errors import reading
from pruning.errors import CheckpointError

# By the names that transformers and the hub give them; lower case. Other JSON is of another library, of a training run,
# or says sizes that are no longer true (params.json, adapter_config.json, quantize_config.json).
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tekken.json",
    "*.model",  # tokenizer.model, spiece.model, sentencepiece.bpe.model
    "tokenizer.model.v*",
    "*.tiktoken",
)
_PROCESSOR = ("*processor_config.json", "chat_template.json", "*.jinja", "generation_config.json")
_PAPERS = ("license*", "licence*", "notice*", "copying*", "readme*", "*policy.txt", "*.md")
_NEVER = ("*.py", "*.bin", "*.safetensors", "*.pt", "*.pth", "*.gguf")
_TEMPLATES = "additional_chat_templates"
_COPY_BYTES = 2**20

CODE_KEY = "auto_map"
"""In configs: the classes that are code of the checkpoint's own, which is never run and not taken along."""


def companion_files(source: Path) -> list[Path]:
    """Paths, relative to `source`, of the files to copy.

    Links count as what they point to, within the folder or the `blobs` of its hub cache. Raises CheckpointError for a
    link that leads elsewhere, or a folder that cannot be read.
    """
    with reading(source):
        found = [path for path in source.iterdir() if _is_companion(path.name) and path.is_file()]
        if (source / _TEMPLATES).is_dir():
            found += [path for path in (source / _TEMPLATES).glob("*.jinja") if path.is_file()]
        _check_links(source, found)
    return sorted(path.relative_to(source) for path in found)


def companion_bytes(source: Path) -> int:
    """Bytes of them all, at most. Raises CheckpointError as `companion_files`."""
    with reading(source):
        return sum((source / path).stat().st_size for path in companion_files(source))


def copy_companions(source: Path, out: Path) -> None:
    """Copy them to the folder `out`, as they are; but a config that names code of its own no longer does.

    Raises CheckpointError for one that cannot be read, OSError for `out`.
    """
    for relative in companion_files(source):
        (out / relative).parent.mkdir(exist_ok=True)
        if relative.suffix == ".json" and (content := _without_code(source / relative)) is not None:
            (out / relative).write_text(content, encoding="utf-8")
        else:
            _copy(source / relative, out / relative)


def _copy(source: Path, out: Path) -> None:
    with reading(source):
        file = source.open("rb")
    with file, out.open("wb") as copy:
        while True:
            with reading(source):
                block = file.read(_COPY_BYTES)
            if not block:
                return
            copy.write(block)


def _without_code(path: Path) -> str | None:
    """The config in `path` without the key that names code; None if it has none, and can be copied as it is."""
    if not path.name.endswith("config.json"):
        return None
    with reading(path):
        content = path.read_bytes()
    try:
        document: Any = json.loads(content)
    except (ValueError, RecursionError):
        return None  # no config of transformers; who reads it will say so
    if not isinstance(document, dict) or CODE_KEY not in document:
        return None
    del document[CODE_KEY]
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _check_links(source: Path, files: list[Path]) -> None:
    folder = source.resolve()
    within = [folder]
    if folder.parent.name == "snapshots":  # the hub's cache: models--NAME/snapshots/REVISION beside blobs
        within.append(folder.parent.parent / "blobs")
    for path in files:
        target = path.resolve()
        if not any(target.is_relative_to(place) for place in within):
            raise CheckpointError(
                "links in a checkpoint's folder must stay within it, or within its hub cache",
                values=f"{path} -> {target}",
                remedy="Put a copy of the file there instead, if it belongs to the model",
            )


def _is_companion(name: str) -> bool:
    lower = name.lower()
    wanted = any(fnmatch(lower, pattern) for pattern in (*_TOKENIZER, *_PROCESSOR, *_PAPERS))
    return wanted and not any(fnmatch(lower, pattern) for pattern in _NEVER)
