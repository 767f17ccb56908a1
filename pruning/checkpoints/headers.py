"""The safetensors headers of a checkpoint folder: every tensor's name, shape, dtype and place, without its data.

Nothing in a header is believed: offsets, sizes and the index are held against each other and against the files.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruning.anatomy.dtypes import DTYPE_BYTES
from pruning.anatomy.tensor_roles import TensorHeader
from pruning.checkpoints.adapters import check_not_adapter_alone
from pruning.checkpoints.file_errors import reading
from pruning.checkpoints.lfs_pointers import REMEDY, check_fetched, is_pointer
from pruning.checkpoints.safetensors_layout import tensor_bytes
from pruning.errors import CheckpointError
from pruning.reasons import reason_of

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

# The format allows 100 MB, whose objects would take a gigabyte; this is 100,000 tensors, and no model has 10,000.
_MAX_HEADER_BYTES = 16 * 2**20
_MAX_DIMENSIONS = 8
_MAX_ELEMENTS = 2**63 - 1
_DIGEST_BLOCK_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a checkpoint; its bytes begin at `offset` of the file `path`."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    path: Path
    offset: int

    @property
    def header(self) -> TensorHeader:
        return (self.name, self.shape, self.dtype)

    @property
    def num_bytes(self) -> int:
        return tensor_bytes(self.shape, self.dtype)


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint, in order. Raises CheckpointError if the folder is not a usable checkpoint."""
    return _files(folder)[0]


def check_folder(folder: Path) -> None:
    """Raises CheckpointError unless `folder` is a checkpoint's, with config.json and no git-lfs pointers."""
    if not folder.is_dir():
        raise CheckpointError("the model must be a checkpoint folder", values=str(folder))
    check_not_adapter_alone(folder)
    if not (folder / "config.json").is_file():
        raise CheckpointError("a checkpoint folder holds config.json", values=str(folder))
    check_fetched(folder)


def _files(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The weight files, and which of them the index says that each tensor is in (None: there is no index)."""
    check_folder(folder)
    weight_map = None
    if (folder / INDEX_NAME).is_file():
        weight_map = _read_index(folder)
        names = sorted(set(weight_map.values()))
        if (folder / SINGLE_NAME).is_file() and names != [SINGLE_NAME]:
            raise CheckpointError(
                f"a checkpoint's weights must be in {SINGLE_NAME} or in the files of {INDEX_NAME}, not in both",
                values=str(folder),
                remedy=f"transformers would load {SINGLE_NAME}; remove what is not the model's",
            )
    elif (folder / SINGLE_NAME).is_file():
        names = [SINGLE_NAME]
    else:
        raise _no_weights(folder)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            "every shard that the index names must be there",
            values=f"missing {missing}",
            remedy="Copy or download the checkpoint again",
        )
    return [folder / name for name in names], weight_map


def _no_weights(folder: Path) -> CheckpointError:
    """What is there instead of weight files under their names, and how to make a checkpoint of it."""
    others, pickles = (sorted(path.name for path in folder.glob(f"*.{kind}")) for kind in ("safetensors", "bin"))
    found = f"{folder}: {_some(others or pickles) or 'no weights'}"
    shards = [name for name in others if re.search(r"-\d+-of-\d+\.safetensors$", name)]
    if shards:
        return CheckpointError(
            f"weights in several files need {INDEX_NAME}, which says what is in which",
            values=found,
            remedy="Copy or download that file too; it lies beside the weight files that it belongs to",
        )
    if any(name.startswith("adapter_") for name in (*others, *pickles)):
        remedy = "An adapter is no model: merge it into its base model (peft's merge_and_unload), then save_pretrained"
    elif others:
        remedy = f"If one of them is the whole model in transformers' names, call it {SINGLE_NAME}"
    elif pickles:
        remedy = "Convert it: load it with transformers and save_pretrained it again"
    else:
        remedy = "Copy or download the weights too"
    return CheckpointError(
        f"a checkpoint's weights must be safetensors ({SINGLE_NAME} or {INDEX_NAME})", values=found, remedy=remedy
    )


def _some(names: Sequence[str]) -> str:
    """The first few."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _read_index(folder: Path) -> dict[str, str]:
    try:
        if (folder / INDEX_NAME).stat().st_size > _MAX_HEADER_BYTES:
            raise ValueError(f"more than {_MAX_HEADER_BYTES:,} bytes")
        weight_map: dict[str, str] = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{INDEX_NAME} must hold a weight_map",
            values=f"{folder}: {reason_of(error)}",
            remedy="Copy or download the checkpoint again",
        ) from error
    # Both kinds of separator: an index travels between systems.
    if any(not isinstance(name, str) or Path(name).name != name or "\\" in name for name in names):
        raise CheckpointError(f"{INDEX_NAME} may only name files in its own folder", values=str(names))
    return weight_map


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Parse one file's header; raises CheckpointError unless its tensors fill the file, without gap or overlap."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise _no_safetensors(path, size)
            if length > _MAX_HEADER_BYTES:
                raise CheckpointError(
                    f"a weight file in safetensors format has a header of at most {_MAX_HEADER_BYTES:,} bytes",
                    values=f"{path}: {length:,}",
                )
            text = file.read(length)
    except OSError as error:
        raise CheckpointError("a weight file must be readable", values=f"{path}: {error.strerror}") from error
    entries = _parse(text, path)
    unknown = sorted({dtype for _, _, dtype, _, _ in entries} - DTYPE_BYTES.keys())
    if unknown:
        raise CheckpointError("weights must be of a plain dtype", values=f"{path}: {unknown}")
    end = 0
    for name, shape, dtype, start, stop in sorted(entries, key=lambda entry: entry[3:]):
        if start != end or stop - start != tensor_bytes(shape, dtype):
            raise CheckpointError(
                "tensors must fill a weight file one after the other, each with the bytes of its shape",
                values=f"{path}: {name} {dtype} {list(shape)} from {start} to {stop}, the one before ends at {end}",
                remedy="Copy or download the checkpoint again",
            )
        end = stop
    if 8 + length + end != size:
        raise CheckpointError(
            "a weight file must be as long as its header says",
            values=f"{path}: {size} bytes, header says {8 + length + end}",
            remedy="Copy or download the checkpoint again",
        )
    return {
        name: StoredTensor(name, shape, dtype, path, 8 + length + start) for name, shape, dtype, start, _ in entries
    }


def _no_safetensors(path: Path, size: int) -> CheckpointError:
    """Of a file that cannot hold the header that its first bytes announce: what those bytes look like."""
    if is_pointer(path):
        return CheckpointError(
            "a weight file must be there itself, not git-lfs's pointer to it",
            values=f"{path}: {size} bytes of text",
            remedy=REMEDY,
        )
    with path.open("rb") as file:
        beginning = file.read(64)
    rule, remedy = "a weight file must be whole and in safetensors format", "Copy or download the checkpoint again"
    kind = next((kind for magic, kind in _OTHER_FORMATS.items() if beginning.lstrip().startswith(magic)), None)
    return CheckpointError(rule, values=f"{path}: {size} bytes{'' if kind is None else f', {kind}'}", remedy=remedy)


_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip file, as torch.save writes",
    b"\x80": "a pickle",
    b"GGUF": "a GGUF file",
    b"\x89HDF": "an HDF5 file",
    b"<": "a web page, such as a download that was refused",
}

_Entry = tuple[str, tuple[int, ...], str, int, int]
"""Name, shape, dtype, and where its data begins and ends."""


def _parse(text: bytes, path: Path) -> list[_Entry]:
    try:
        header = json.loads(text, object_pairs_hook=_without_repeats)
        return [_entry(name, content) for name, content in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            "a weight file must be in safetensors format",
            values=f"{path}: {reason_of(error)}",
            remedy="Copy or download the checkpoint again",
        ) from error


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The format forbids repeated keys; a parser that keeps one of two would hide the other."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _entry(name: str, content: Mapping[str, Any]) -> _Entry:
    """Raises ValueError, KeyError or TypeError for what is no tensor."""
    start, stop = content["data_offsets"]
    shape, dtype = content["shape"], content["dtype"]
    if not isinstance(dtype, str) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"{name} has no dtype, or more than {_MAX_DIMENSIONS} dimensions")
    if any(type(x) is not int or not 0 <= x <= _MAX_ELEMENTS for x in (*shape, start, stop)):
        raise ValueError(f"{name} has no whole shape and offsets")
    if math.prod(shape) > _MAX_ELEMENTS:
        raise ValueError(f"{name} has more than {_MAX_ELEMENTS} elements")
    name.encode()  # a lone surrogate cannot be written again
    return name, tuple(shape), dtype, start, stop


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint and where it is.

    Raises CheckpointError for a damaged file, a tensor that stands twice, or an index that the headers contradict.
    """
    files, weight_map = _files(folder)
    found: dict[str, StoredTensor] = {}
    for path in files:
        for name, tensor in read_header(path).items():
            if name in found:
                raise CheckpointError(
                    "a tensor may stand in one shard only", values=f"{name} in {path.name} and {found[name].path.name}"
                )
            found[name] = tensor
    if weight_map is not None:
        _check_index(weight_map, found)
    return found


def _check_index(weight_map: Mapping[str, str], found: Mapping[str, StoredTensor]) -> None:
    for name in sorted(weight_map.keys() | found.keys()):
        said = weight_map.get(name, "in no file")
        there = found[name].path.name if name in found else "in no file"
        if said != there:
            raise CheckpointError(
                f"{INDEX_NAME} must name the shard that each tensor is in",
                values=f"{name}: index says {said}, the headers say {there}",
                remedy="Copy or download the checkpoint again",
            )


def read_headers(folder: Path) -> dict[str, tuple[Path, TensorHeader]]:
    """Every tensor of a checkpoint: name -> (file, header). Raises as `stored_tensors`."""
    return {name: (tensor.path, tensor.header) for name, tensor in stored_tensors(folder).items()}


def weights_sha256(folder: Path, *, on_bytes: Callable[[int, int], None] | None = None) -> str:
    """One digest over all weight files: tells two fine-tunes of one architecture apart.

    Reads every byte once; `on_bytes` is told of progress as (done, total). Raises CheckpointError if the folder is not
    a checkpoint, or a file cannot be read.
    """
    files = weight_files(folder)
    total, done = 0, 0
    for path in files:
        with reading(path):
            total += path.stat().st_size
    digest = hashlib.sha256()
    for path in files:
        own = hashlib.sha256()
        with reading(path), path.open("rb", buffering=0) as file:
            while block := file.read(_DIGEST_BLOCK_BYTES):
                own.update(block)
                done += len(block)
                if on_bytes is not None:
                    on_bytes(done, total)
        digest.update(own.digest())
    return digest.hexdigest()
