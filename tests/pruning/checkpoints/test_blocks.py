"""Cutting stored tensors in blocks: the bytes are those of an array that is cut whole."""

from io import FileIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from pruning.anatomy.architecture import Site, Sublayer
from pruning.anatomy.decoder_layer import Part, TensorSpec
from pruning.checkpoints import blocks
from pruning.checkpoints.blocks import cut_blocks, whole_blocks
from pruning.checkpoints.headers import StoredTensor, read_header
from pruning.errors import CheckpointError


def stored(folder: Path, array: np.ndarray) -> StoredTensor:
    """`array` in a file, behind another tensor."""
    path = folder / "x.safetensors"
    save_file({"before": np.arange(7, dtype=array.dtype), "x": array}, path)
    return read_header(path)["x"]


def numbered(*shape: int, dtype: str = "int16") -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(-(2**15), 2**15, shape).astype(dtype)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_cut_in_blocks_is_a_cut(data: st.DataObject, tmp_path: Path) -> None:
    dtype = data.draw(st.sampled_from(["int8", "float16", "float32", "float64"]))
    shape = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))
    array = np.random.default_rng(0).normal(size=shape, scale=50).astype(dtype)
    axis = data.draw(st.integers(0, len(shape) - 1))
    kept = np.array(sorted(data.draw(st.sets(st.integers(0, shape[axis] - 1), min_size=1))), dtype=np.int64)
    block_bytes, gap_bytes = data.draw(st.integers(1, 200)), data.draw(st.integers(0, 100))
    tensor = stored(tmp_path, array)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BRIDGED_GAP_BYTES", gap_bytes)
        found = list(cut_blocks(tensor, axis, kept, block_bytes=block_bytes))
    assert b"".join(bytes(block) for block in found) == array.take(kept, axis=axis).tobytes()
    assert all(len(block) <= max(block_bytes, array.itemsize) for block in found)


@pytest.mark.parametrize("block_bytes", [1, 7, 24, 25, 10**6])
def test_a_whole_tensor(tmp_path: Path, block_bytes: int) -> None:
    array = numbered(3, 4)
    found = list(whole_blocks(stored(tmp_path, array), block_bytes=block_bytes))
    assert b"".join(bytes(block) for block in found) == array.tobytes()
    assert max(map(len, found)) == min(block_bytes, 24)


def bytes_read(monkeypatch: pytest.MonkeyPatch, tensor: StoredTensor, axis: int, kept: list[int]) -> list[int]:
    """How many bytes each read asks for."""
    asked: list[int] = []
    original = blocks.read_bytes

    def counted(file: FileIO, offset: int, count: int) -> blocks.Bytes:
        asked.append(count)
        return original(file, offset, count)

    monkeypatch.setattr(blocks, "read_bytes", counted)
    list(cut_blocks(tensor, axis, np.array(kept)))
    return asked


def test_of_rows_only_the_kept_ones_and_small_gaps_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = blocks.BRIDGED_GAP_BYTES // 4  # four rows are a gap that is bridged, five are not
    tensor = stored(tmp_path, numbered(20, row // 2))
    kept = [0, 1, 2, 7, 13, 19]
    assert bytes_read(monkeypatch, tensor, 0, kept) == [8 * row, row, row]


def test_of_columns_every_row_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 3 * blocks.BLOCK_BYTES // 2000
    tensor = stored(tmp_path, numbered(rows, 1000))
    asked = bytes_read(monkeypatch, tensor, 1, [0, 999])
    assert sum(asked) == rows * 2000
    assert max(asked) <= blocks.BLOCK_BYTES


def test_a_fused_projection_keeps_the_rows_of_each_part(tmp_path: Path) -> None:
    """qkv rows: 3 groups of 2 query heads of 2, then 3 key heads of 2, then 3 value heads of 2."""
    array = numbered(24, 5)
    parts = (Part(Sublayer.ATTENTION, 4, 3), Part(Sublayer.ATTENTION, 2, 3), Part(Sublayer.ATTENTION, 2, 3))
    spec = TensorSpec("qkv_proj.weight", (24, 5), "I16", Site(0, Sublayer.ATTENTION), 0, parts)
    kept = spec.kept_indices(np.array([0, 2]))
    found = b"".join(bytes(block) for block in cut_blocks(stored(tmp_path, array), 0, kept, block_bytes=30))
    rows = [0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 16, 17, 18, 19, 22, 23]
    assert found == array[rows].tobytes()


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    tensor = stored(tmp_path, numbered(10, 10))
    tensor.path.write_bytes(tensor.path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"stay as it is.*x\.safetensors"):
        list(whole_blocks(tensor))
    tensor.path.unlink()
    with pytest.raises(CheckpointError, match="readable"):
        list(cut_blocks(tensor, 0, np.array([1])))
