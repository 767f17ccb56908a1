"""Files of prompts and conversations that commands write: where they may, and how they name pictures."""

import os
from pathlib import Path

from pruning.atomic_file import replace_file
from pruning.errors import InputError
from pruning.measuring.answer_draft import draft_file


def check_out(out: Path, prompts: Path | None = None) -> None:
    """Raises InputError unless `out` can be written: a file that is not there yet, in a folder that is.

    One that is there passes if a draft is beside it: a run may have been killed between its last two steps. `prompts`
    is what the run reads.
    """
    if prompts is not None and _is_same(out, prompts):
        raise InputError("--out must be another file than --prompts", values=str(out))
    if not out.parent.is_dir():
        raise InputError("the folder of --out must exist", values=str(out.parent), remedy="Make it, or choose another")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise InputError("the folder of --out must be writable", values=str(out.parent), remedy="Choose another")
    if os.path.lexists(out) and not draft_file(out).exists():
        raise exists(out)


def _is_same(out: Path, prompts: Path) -> bool:
    return os.path.exists(out) and os.path.exists(prompts) and out.samefile(prompts)  # noqa: PTH110 names may be too long


def exists(out: Path) -> InputError:
    """The error of an `out` that is there already."""
    return InputError("--out must not exist yet", values=str(out), remedy="Choose another file, or remove it")


def write_once(out: Path, content: bytes) -> None:
    """Write `out` whole; raises InputError (`exists`) if it is there with other content."""
    if not os.path.lexists(out):
        replace_file(out, content)
    elif not out.is_file() or out.read_bytes() != content:
        raise exists(out)


def path_from(out: Path, image: Path) -> str:
    """The path of `image` as a file at `out` names it. Folders that are links are followed, the image itself is not."""
    return os.path.relpath(image.parent.resolve() / image.name, out.parent.resolve())
