"""Layers whose weights were solved anew, in a folder beside the output until that is whole: a killed run goes on."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.tensor_roles import decoder_tensor
from pruning.atomic_file import beside, replace_file
from pruning.checkpoints.file_errors import os_error
from pruning.checkpoints.headers import StoredTensor, read_header
from pruning.cutting.reconstruction import SolvedLayer
from pruning.cutting.streaming.draft import Contents
from pruning.errors import CheckpointError

_STATE = "solved.json"
_NOTE = "sites"


def solved_folder(out: Path) -> Path:
    """Where the solved layers of the output `out` are kept until it is whole."""
    return beside(out, ".solved")


class SolvedFiles:
    """A file a layer, whole or absent."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, layer: int) -> SolvedLayer | None:
        path = self._path(layer)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                names, note = list(file.keys()), file.metadata()[_NOTE]
                return SolvedLayer({name: file.get_tensor(name) for name in names}, SolvedLayer.sites_of(note))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                "solved layers are safetensors files", values=f"{path}: {error}", remedy=f"Remove {path}"
            ) from error

    def tensors(self, layer: int) -> Mapping[str, torch.Tensor] | None:
        """The weights of `layer`, by their names in it; None: nothing was solved there."""
        found = self.get(layer)
        return None if found is None else found.tensors

    def put(self, layer: int, solved: SolvedLayer) -> None:
        replace_file(self._path(layer), save(solved.tensors, metadata={_NOTE: solved.note()}))

    def stored(self, anatomy: ModelAnatomy) -> dict[str, StoredTensor]:
        """The tensors of all files, by the names that the model's checkpoint has for them."""
        prefixes = {
            place[0]: x.name.removesuffix(place[1]) for x in anatomy.tensors if (place := decoder_tensor(x.name))
        }
        return {
            prefixes[layer] + inside: tensor
            for layer in prefixes
            if self._path(layer).is_file()
            for inside, tensor in read_header(self._path(layer)).items()
        }

    def _path(self, layer: int) -> Path:
        return self._folder / f"layer-{layer:05d}.safetensors"


@contextmanager
def layer_folder(out: Path, contents: Contents) -> Iterator[Path]:
    """The folder of finished layers of `out`, begun anew if it is of anything else than `contents`.

    It is removed when the block ends well, and where it would not end better another time. Where the file system
    stops it (a full disk), or the process is interrupted or killed, it stays, to be gone on with.

    Raises CheckpointError if what is in its place is something else, OSError if it cannot be written.
    """
    folder = solved_folder(out)
    state = {"lop_solved": hashlib.sha256(json.dumps(dict(contents), sort_keys=True).encode()).hexdigest()}
    known = _state_of(folder)
    if known != state:
        if known is not None:
            shutil.rmtree(folder)
        folder.mkdir()
        replace_file(folder / _STATE, json.dumps(state).encode())
    try:
        yield folder
    except Exception as error:
        if os_error(error) is None and not isinstance(error.__cause__, OSError):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _state_of(folder: Path) -> Mapping[str, Any] | None:
    """What the files in `folder` are of; None: it is not there."""
    if not folder.exists() and not folder.is_symlink():
        return None
    try:
        found: Any = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        if not folder.is_symlink() and isinstance(found, dict) and "lop_solved" in found:
            return found
    except (OSError, ValueError):
        if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
            return {}  # killed before the state was written
    raise CheckpointError(
        "what is in the place of solved layers must be those",
        values=str(folder),
        remedy=f"Remove {folder}, or choose another output folder",
    )
