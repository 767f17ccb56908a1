"""Headers and index of a checkpoint: every offset is held against the file, every name against the index."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from pruning.checkpoints.headers import INDEX_NAME, SINGLE_NAME, read_header, stored_tensors
from pruning.errors import CheckpointError


def write_weights(path: Path, header: dict[str, Any] | str, data: bytes) -> Path:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(start: int, stop: int, *, shape: list[Any] | None = None, dtype: str = "F16") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(stop - start) // 2] if shape is None else shape, "data_offsets": [start, stop]}


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Two shards: `a` in the first, `b` and `c` in the second."""
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": np.arange(3.0)}, tmp_path / "1.safetensors")
    save_file({"b": np.arange(4.0), "c": np.arange(5, dtype=np.int32)}, tmp_path / "2.safetensors")
    write_index(tmp_path, {"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"})
    return tmp_path


def write_index(folder: Path, weight_map: dict[str, Any]) -> None:
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_every_tensor_is_where_its_offset_says(sharded: Path) -> None:
    found = stored_tensors(sharded)
    assert {name: tensor.header for name, tensor in found.items()} == {
        "a": ("a", (3,), "F64"),
        "b": ("b", (4,), "F64"),
        "c": ("c", (5,), "I32"),
    }
    for name, tensor in found.items():
        with safe_open(tensor.path, framework="numpy") as file:
            expected = file.get_tensor(name).tobytes()
        assert tensor.path.read_bytes()[tensor.offset : tensor.offset + tensor.num_bytes] == expected


def test_empty_tensors_and_metadata_are_no_gap(tmp_path: Path) -> None:
    header = {"__metadata__": {"format": "pt"}, "b": entry(4, 8), "e": entry(4, 4, shape=[0, 7]), "a": entry(0, 4)}
    found = read_header(write_weights(tmp_path / "x", header, bytes(8)))
    assert {name: tensor.num_bytes for name, tensor in found.items()} == {"a": 4, "b": 4, "e": 0}


@pytest.mark.parametrize(
    ("header", "num_bytes"),
    [
        ({"a": entry(0, 4), "b": entry(6, 8)}, 8),  # a gap
        ({"a": entry(0, 4), "b": entry(2, 6)}, 6),  # an overlap
        ({"a": entry(0, 4), "b": entry(0, 4)}, 4),  # the same bytes twice
        ({"a": entry(2, 6)}, 6),  # does not begin at the beginning
        ({"a": entry(0, 8, shape=[3])}, 8),  # not of its shape's size
        ({"a": entry(4, 0, shape=[0])}, 4),  # backwards
    ],
)
def test_tensors_that_do_not_fill_the_file_one_by_one(tmp_path: Path, header: dict[str, Any], num_bytes: int) -> None:
    with pytest.raises(CheckpointError, match="one after the other"):
        read_header(write_weights(tmp_path / "x", header, bytes(num_bytes)))


@pytest.mark.parametrize("num_bytes", [7, 9])
def test_a_file_that_is_shorter_or_longer_than_its_tensors(tmp_path: Path, num_bytes: int) -> None:
    with pytest.raises(CheckpointError, match="as long as its header says"):
        read_header(write_weights(tmp_path / "x", {"a": entry(0, 8)}, bytes(num_bytes)))


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(0, 4, shape=[-2])},
        {"a": entry(0, 4, shape=[2.0])},
        {"a": entry(0, 4, shape=[True, 2])},
        {"a": entry(0, 4, shape=[2**63])},
        {"a": entry(0, 4, shape=[2**32, 2**31])},
        {"a": entry(0, 4, shape=[1] * 8 + [2])},
        {"a": entry(0, 4, shape=[2**62] * 100_000)},
        {"a": {"dtype": "F16", "shape": 2, "data_offsets": [0, 4]}},
        {"a": {"dtype": "F16", "shape": [2], "data_offsets": [0]}},
        {"a": {"dtype": ["F16"], "shape": [2], "data_offsets": [0, 4]}},
        {"a": 3},
        [],
        '{"a": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}, "a": {"dtype": "F16", "shape": [2], '
        '"data_offsets": [0, 4]}}',
        '{"\\ud800": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}}',
        "[" * 100_000,
        "\xff",
    ],
)
def test_what_is_no_header(tmp_path: Path, header: Any) -> None:
    with pytest.raises(CheckpointError, match="safetensors format"):
        read_header(write_weights(tmp_path / "x", header, bytes(4)))


def test_eight_dimensions_are_allowed(tmp_path: Path) -> None:
    found = read_header(write_weights(tmp_path / "x", {"a": entry(0, 4, shape=[1] * 7 + [2])}, bytes(4)))
    assert found["a"].shape == (1, 1, 1, 1, 1, 1, 1, 2)


def test_a_header_of_more_objects_than_any_model_has(tmp_path: Path) -> None:
    """It would be read whole, and its objects take ten times the room."""
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.write((2**24 + 1).to_bytes(8, "little"))
        file.truncate(2**25)
    with pytest.raises(CheckpointError, match="header of at most 16,777,216 bytes"):
        read_header(path)


def test_an_index_of_more_names_than_any_model_has(sharded: Path) -> None:
    with (sharded / INDEX_NAME).open("r+b") as file:
        file.truncate(2**24 + 1)
    with pytest.raises(CheckpointError, match="hold a weight_map"):
        stored_tensors(sharded)


def test_a_single_file_beside_shards(sharded: Path) -> None:
    """transformers prefers the single file, whatever the index says."""
    save_file({"a": np.arange(3.0)}, sharded / SINGLE_NAME)
    with pytest.raises(CheckpointError, match=r"not in both.*transformers would load model\.safetensors"):
        stored_tensors(sharded)


def test_an_index_of_one_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": np.arange(3.0)}, tmp_path / SINGLE_NAME)
    write_index(tmp_path, {"a": SINGLE_NAME})
    assert list(stored_tensors(tmp_path)) == ["a"]


def test_names_that_are_not_ascii(sharded: Path) -> None:
    """JSON is UTF-8, whatever the system's encoding."""
    save_file({"ä": np.arange(3.0)}, sharded / "1.safetensors")
    weight_map = {"ä": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"}
    (sharded / INDEX_NAME).write_bytes(json.dumps({"weight_map": weight_map}, ensure_ascii=False).encode())
    read = (
        "from pathlib import Path; from pruning.checkpoints.headers import stored_tensors; "
        "print(len(stored_tensors(Path('.'))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", read],
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"},
        cwd=sharded,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "3\n"


def test_a_dtype_that_cannot_be_cut(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"plain dtype.*F8_E4M3"):
        read_header(write_weights(tmp_path / "x", {"a": entry(0, 2, shape=[2], dtype="F8_E4M3")}, bytes(2)))


def test_a_tensor_that_the_index_says_is_elsewhere(sharded: Path) -> None:
    write_index(sharded, {"a": "2.safetensors", "b": "1.safetensors", "c": "2.safetensors"})
    with pytest.raises(CheckpointError, match=r"a: index says 2\.safetensors, the headers say 1\.safetensors"):
        stored_tensors(sharded)


def test_a_tensor_that_is_in_no_shard(sharded: Path) -> None:
    write_index(sharded, {"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors", "d": "1.safetensors"})
    with pytest.raises(CheckpointError, match=r"d: index says 1\.safetensors, the headers say in no file"):
        stored_tensors(sharded)


def test_a_tensor_that_the_index_does_not_name(sharded: Path) -> None:
    write_index(sharded, {"a": "1.safetensors", "b": "2.safetensors"})
    with pytest.raises(CheckpointError, match=r"c: index says in no file, the headers say 2\.safetensors"):
        stored_tensors(sharded)


def test_a_tensor_in_two_shards(sharded: Path) -> None:
    save_file({"a": np.arange(3.0), "b": np.arange(4.0)}, sharded / "1.safetensors")
    with pytest.raises(CheckpointError, match=r"one shard only.*b in 2\.safetensors and 1\.safetensors"):
        stored_tensors(sharded)


@pytest.mark.parametrize("name", ["../1.safetensors", "/etc/passwd", "..\\1.safetensors", "x/1.safetensors", 7])
def test_an_index_that_leaves_its_folder(sharded: Path, name: Any) -> None:
    write_index(sharded, {"a": name, "b": "2.safetensors", "c": "2.safetensors"})
    with pytest.raises(CheckpointError, match=r"its own folder|hold a weight_map"):
        stored_tensors(sharded)


@pytest.mark.parametrize("content", ["", "[]", '{"weight_map": 3}', '{"weight_map": {"a": ["x"]}}', "[" * 100_000])
def test_what_is_no_index(sharded: Path, content: str) -> None:
    (sharded / INDEX_NAME).write_text(content)
    with pytest.raises(CheckpointError, match="hold a weight_map"):
        stored_tensors(sharded)


def test_links_to_files_elsewhere_are_files(sharded: Path, tmp_path: Path) -> None:
    """The hub's cache holds blobs, and folders of links to them."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    for number, path in enumerate(sorted(sharded.glob("*.*"))):
        (snapshot / path.name).symlink_to(path.rename(blobs / str(number)))
    assert {name: tensor.path.name for name, tensor in stored_tensors(snapshot).items()} == {
        "a": "1.safetensors",
        "b": "2.safetensors",
        "c": "2.safetensors",
    }
