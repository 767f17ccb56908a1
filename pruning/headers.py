"""The safetensors headers of a checkpoint folder: every tensor's name, shape, dtype and file, without its data."""

import hashlib
import json
from pathlib import Path

from pruning.cost import TensorHeader, tensor_bytes
from pruning.dtypes import DTYPE_BYTES
from pruning.errors import CheckpointError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint, in order. Raises CheckpointError if the folder is not a usable checkpoint."""
    if not folder.is_dir():
        raise CheckpointError("the model must be a checkpoint folder", values=str(folder))
    if not (folder / "config.json").is_file():
        raise CheckpointError("a checkpoint folder holds config.json", values=str(folder))
    if (folder / INDEX_NAME).is_file():
        try:
            weight_map = json.loads((folder / INDEX_NAME).read_text())["weight_map"]
            names = sorted(set(weight_map.values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{INDEX_NAME} must hold a weight_map", values=str(folder)) from error
        if any(not isinstance(name, str) or Path(name).name != name for name in names):
            raise CheckpointError(f"{INDEX_NAME} may only name files in its own folder", values=str(names))
    elif (folder / SINGLE_NAME).is_file():
        names = [SINGLE_NAME]
    else:
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        raise CheckpointError(
            f"a checkpoint's weights must be safetensors ({SINGLE_NAME} or {INDEX_NAME})",
            values=f"{folder}: {pickles or 'no weights'}",
            remedy="Convert it: load it with transformers and save_pretrained it again",
        )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError("every shard that the index names must be there", values=f"missing {missing}")
    return [folder / name for name in names]


def read_header(path: Path) -> dict[str, TensorHeader]:
    """Parse one file's header and check it against the file's size; raises CheckpointError if they disagree."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_MAX_HEADER_BYTES, size - 8):
            raise CheckpointError(
                "a weight file must be whole and in safetensors format", values=f"{path}: {size} bytes"
            )
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            tensors = {name: (name, tuple(map(int, x["shape"])), str(x["dtype"])) for name, x in header.items()}
            ends = [int(x["data_offsets"][1]) for x in header.values()]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise CheckpointError("a weight file must be in safetensors format", values=str(path)) from error
    unknown = sorted({dtype for _, _, dtype in tensors.values()} - DTYPE_BYTES.keys())
    if unknown:
        raise CheckpointError("weights must be of a plain dtype", values=f"{path}: {unknown}")
    expected = 8 + length + max(ends, default=0)
    data = sum(tensor_bytes(shape, dtype) for _, shape, dtype in tensors.values())
    if expected != size or data != max(ends, default=0):
        raise CheckpointError(
            "a weight file must be as long as its header says",
            values=f"{path}: {size} bytes, header says {expected}",
            remedy="Copy or download the checkpoint again",
        )
    return tensors


def read_headers(folder: Path) -> dict[str, tuple[Path, TensorHeader]]:
    """Every tensor of a checkpoint: name -> (file, header). Raises CheckpointError on damage or duplicates."""
    found: dict[str, tuple[Path, TensorHeader]] = {}
    for path in weight_files(folder):
        for name, header in read_header(path).items():
            if name in found:
                raise CheckpointError(
                    "a tensor may stand in one shard only", values=f"{name} in {path.name} and before"
                )
            found[name] = (path, header)
    return found


def weights_sha256(folder: Path) -> str:
    """One digest over all weight files: tells two fine-tunes of one architecture apart."""
    digest = hashlib.sha256()
    for path in weight_files(folder):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
