"""llama.cpp's quantiser on what was exported, and Ollama's Modelfile."""

from pathlib import Path

import pytest
from gguf import GGMLQuantizationType, GGUFReader

from pruning.cutting.gguf.export import export_gguf
from pruning.cutting.gguf.modelfile import write_modelfile
from pruning.cutting.gguf.options import Quantisation
from pruning.cutting.gguf.quantise import export_quantised
from pruning.cutting.gguf.type_files import read_tensor_types
from pruning.errors import CheckpointError


def types_in(file: Path) -> dict[str, GGMLQuantizationType]:
    return {x.name: x.tensor_type for x in GGUFReader(file).tensors}


def test_single_tensors_get_the_types_of_the_file(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    listed = tmp_path / "types"
    listed.write_text("# the last layer\nblk\\.3\\.attn_q = q8_0  # precious\n\nblk\\.0\\.attn_q=q5_1\n")
    out = tmp_path / "model.gguf"
    found = export_quantised(checkpoint, out, Quantisation.Q4_0, tensor_types=read_tensor_types(listed))
    types = types_in(out)
    assert types["blk.3.attn_q.weight"] == GGMLQuantizationType.Q8_0
    assert types["blk.0.attn_q.weight"] == GGMLQuantizationType.Q5_1
    assert types["blk.1.attn_q.weight"] == GGMLQuantizationType.Q4_0
    assert types["blk.1.attn_norm.weight"] == GGMLQuantizationType.F32
    assert sum(found.types.values()) == len(types) == found.num_tensors
    assert found.file_bytes == out.stat().st_size
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".gguf"] == ["model.gguf"]
    with pytest.raises(CheckpointError, match="must not exist"):
        export_quantised(checkpoint, out, Quantisation.Q4_0)


def test_the_modelfile_names_the_files_and_the_ends(checkpoint: Path, tmp_path: Path) -> None:
    out, mmproj = tmp_path / "model.gguf", tmp_path / "eyes.gguf"
    export_gguf(checkpoint, out, mmproj=mmproj, checks_encoding=False)
    path = write_modelfile(out, mmproj)
    assert path is not None
    assert path.read_text().splitlines() == ["FROM ./model.gguf", "FROM ./eyes.gguf", 'PARAMETER stop "<eos>"']
    assert write_modelfile(out, mmproj) is None  # it may have been edited
