"""Blocks that are finished, a file each, whole or absent, in the folder of a run that may be killed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from pruning.atomic_file import replace_file
from pruning.checkpoints.headers import StoredTensor, read_header
from pruning.cutting.rewriting.blocks import Block
from pruning.cutting.rewriting.rewriter import Rewritten
from pruning.errors import CheckpointError

_NOTES = "notes"
_DECISIONS = "decisions.json"


class BlockFiles:
    """Files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, block: Block) -> Rewritten | None:
        path = self._path(block)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                names, notes = list(file.keys()), json.loads(file.metadata()[_NOTES])
                return Rewritten({name: file.get_tensor(name) for name in names}, notes)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                "finished layers are safetensors files", values=f"{path}: {error}", remedy=f"Remove {path}"
            ) from error

    def put(self, block: Block, rewritten: Rewritten) -> None:
        replace_file(self._path(block), save(rewritten.tensors, metadata={_NOTES: json.dumps(rewritten.notes)}))

    def notes(self) -> dict[str, dict[str, Any]]:
        """Of all finished blocks, by the names of weights."""
        found: dict[str, dict[str, Any]] = {}
        for path in sorted(self._folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                found |= json.loads(file.metadata()[_NOTES])
        return found

    def stored(self) -> dict[str, StoredTensor]:
        """The tensors of all files."""
        return {
            name: tensor
            for path in sorted(self._folder.glob("*.safetensors"))
            for name, tensor in read_header(path).items()
        }

    def decided(self, decide: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `decide` said when it was first asked; kept, since it may take long."""
        path = self._folder / _DECISIONS
        if not path.is_file():
            replace_file(path, json.dumps(decide()).encode())
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def _path(self, block: Block) -> Path:
        return self._folder / f"{block.key}.safetensors"
