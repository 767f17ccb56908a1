"""What belongs to a checkpoint besides weights and config: tokenizer, processor, templates, licence, model card."""

import shutil
from fnmatch import fnmatch
from pathlib import Path

from pruning.checkpoint import PLAN_NAME
from pruning.errors import CheckpointError

# Tokenizer, processor and generation config are *.json; code is never taken along, nor are weights of other formats.
_PATTERNS = (
    "*.json",
    "*.jinja",
    "*.txt",
    "*.md",
    "*.model",
    "*.tiktoken",
    "license*",
    "licence*",
    "notice*",
    "copying*",
)
_NOT_COPIED = ("config.json", "*.index.json", PLAN_NAME, "metrics.json", "*.py", "*.bin", "*.safetensors")
_TEMPLATES = "additional_chat_templates"


def companion_files(source: Path) -> list[Path]:
    """Paths, relative to `source`, of the files to copy as they are; links count as what they point to."""
    found = [path for path in source.iterdir() if _is_companion(path.name) and path.is_file()]
    if (source / _TEMPLATES).is_dir():
        found += [path for path in (source / _TEMPLATES).glob("*.jinja") if path.is_file()]
    return sorted(path.relative_to(source) for path in found)


def copy_companions(source: Path, out: Path) -> None:
    """Copy them to the folder `out`. Raises CheckpointError for one that cannot be read, OSError for `out`."""
    for relative in companion_files(source):
        (out / relative).parent.mkdir(exist_ok=True)
        try:
            file = (source / relative).open("rb")
        except OSError as error:
            raise CheckpointError(
                "the checkpoint's files must be readable", values=f"{source / relative}: {error.strerror}"
            ) from error
        with file, (out / relative).open("wb") as copy:
            shutil.copyfileobj(file, copy)


def _is_companion(name: str) -> bool:
    lower = name.lower()
    return any(fnmatch(lower, pattern) for pattern in _PATTERNS) and not any(
        fnmatch(lower, pattern) for pattern in _NOT_COPIED
    )
