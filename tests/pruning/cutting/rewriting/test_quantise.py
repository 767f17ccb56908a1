"""Checkpoints in few bits, written from files to files and read back by transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from pruning.anatomy.tensor_roles import decoder_tensor
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.headers import stored_tensors
from pruning.checkpoints.loading import load_model, load_processor
from pruning.cutting.rewriting.block_files import BlockFiles
from pruning.cutting.rewriting.blocks import Block, language_blocks
from pruning.cutting.rewriting.quantise_checkpoint import REPORT_NAME, Quantisation, quantise_checkpoint
from pruning.cutting.rewriting.quantiser import Quantiser, Rounding
from pruning.cutting.rewriting.rewriter import Rewritten
from pruning.data.batches import BatchStream, make_batches
from pruning.data.conversations import Conversation, calibration_id
from pruning.errors import InputError, UnsupportedModelError
from tests.pruning.cut_models import next_token_logits
from tests.tiny_models import save_tiny_checkpoint

pytest.importorskip("compressed_tensors")

CPU = torch.device("cpu")


def run(folder: Path, out: Path, asked: Quantisation, data: list[Conversation] | None = None) -> dict[str, Any]:
    if data is None:
        return quantise_checkpoint(folder, out, asked, CPU)
    batches = BatchStream(data, load_processor(folder), batch_size=4, max_tokens=1000)
    return quantise_checkpoint(folder, out, asked, CPU, batches=batches, calibration_id=calibration_id(data))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FFNs of 64 channels, so that all widths are whole groups of 32; in bfloat16."""
    folder = tmp_path_factory.mktemp("wide")
    load_model(save_tiny_checkpoint(folder / "f32", ffn_width=64), dtype=torch.bfloat16).save_pretrained(folder / "m")
    load_processor(folder / "f32").save_pretrained(folder / "m")
    return folder / "m"


@pytest.mark.parametrize("rounding", list(Rounding))
def test_transformers_reads_back_what_was_rounded(
    rounding: Rounding, wide: Path, conversations: list[Conversation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four bits and eight side by side: the logits are those of the weights that inputs were propagated through."""
    kept: dict[str, torch.Tensor] = {}
    put = BlockFiles.put

    def noted(files: BlockFiles, block: Block, made: Rewritten) -> None:
        reader = Quantiser(rounding, {})
        kept.update({x.name: reader.weight(x, made.tensors) for x in block.projections})  # type: ignore[misc]
        put(files, block, made)

    monkeypatch.setattr(BlockFiles, "put", noted)
    report = run(wide, tmp_path / "out", Quantisation(rounding, (4, 8, 4, 4), 32), conversations)
    expected = load_model(wide)
    names = {f"layers.{place[0]}.{place[1]}": name for name in kept if (place := decoder_tensor(name))}
    with torch.no_grad():
        for name, parameter in expected.get_decoder().named_parameters():
            if name in names:
                assert not torch.equal(parameter, kept[names[name]])
                parameter.copy_(kept[names[name]])
    found = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto")
    assert torch.equal(next_token_logits(found), next_token_logits(expected))
    assert len(names) == 4 * 7
    written = json.loads((tmp_path / "out" / REPORT_NAME).read_text())
    assert written == json.loads(json.dumps(report))
    assert written["bits"] == [4, 8, 4, 4]
    sizes = sum(x.num_bytes for x in stored_tensors(tmp_path / "out").values())
    assert report["weights_bytes"] == sizes < report["dense_bytes"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["ignore"] == ["lm_head", "re:.*vision_tower.*"]
    with pytest.raises(UnsupportedModelError, match="unquantised"):
        run(tmp_path / "out", tmp_path / "again", Quantisation(Rounding.NEAREST, (8,), 32))


def test_more_bits_and_gptq_lose_less(wide: Path, conversations: list[Conversation], tmp_path: Path) -> None:
    (batch,) = make_batches(conversations[:2], load_processor(wide))
    dense = load_model(wide, dtype=torch.float32)

    def lost(name: str, asked: Quantisation, data: list[Conversation] | None) -> float:
        run(wide, tmp_path / name, asked, data)
        model = AutoModelForImageTextToText.from_pretrained(tmp_path / name, dtype="auto")
        with torch.inference_mode():
            return float((model(**batch.inputs).logits.float() - dense(**batch.inputs).logits).norm())

    nearest = lost("nearest", Quantisation(Rounding.NEAREST, (4,), 32), None)
    assert lost("gptq", Quantisation(Rounding.GPTQ, (4,), 32), conversations) < nearest
    assert lost("eight", Quantisation(Rounding.NEAREST, (8,), 32), None) < 0.4 * nearest


def test_fused_projections(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "dense", "phi3", ffn_width=64)
    run(folder, tmp_path / "out", Quantisation(Rounding.NEAREST, (8,), 32))
    found, dense = (AutoModelForCausalLM.from_pretrained(x) for x in (tmp_path / "out", folder))
    torch.testing.assert_close(next_token_logits(found), next_token_logits(dense), rtol=0.05, atol=0.05)


def test_what_is_refused(checkpoint: Path, wide: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mlp.down_proj of language layer 0 has 48 inputs"):
        run(checkpoint, tmp_path / "out", Quantisation(Rounding.NEAREST, (4,), 32))
    with pytest.raises(InputError, match="2 numbers, 4 layers"):
        Quantisation(Rounding.NEAREST, (4, 8), 32).formats(language_blocks(read_anatomy(wide)))
    with pytest.raises(InputError, match="GPTQ needs calibration data"):
        run(wide, tmp_path / "out", Quantisation(Rounding.GPTQ, (4,), 32))
    assert not list(tmp_path.iterdir())
