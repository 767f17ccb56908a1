"""Checkpoints in few bits, written from files to files and read back by transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from pruning.anatomy.tensor_roles import decoder_tensor
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.headers import stored_tensors
from pruning.checkpoints.loading import PLAN_NAME, load_model, load_processor, load_pruned
from pruning.checkpoints.unpacking import unpack_weights
from pruning.cutting.base_model import CARD_NAME, card_metadata
from pruning.cutting.inspection import inspect_checkpoint
from pruning.cutting.pruned_config import SPARSITY_KEY
from pruning.cutting.rewriting.block_files import BlockFiles
from pruning.cutting.rewriting.blocks import Block, language_blocks
from pruning.cutting.rewriting.quantise_checkpoint import REPORT_NAME, Quantisation, quantise_checkpoint
from pruning.cutting.rewriting.quantiser import Quantiser, Rounding
from pruning.cutting.rewriting.rewriter import Rewritten
from pruning.cutting.rewriting.source import SPARSITY_REPORT
from pruning.cutting.rewriting.sparsifier import LocalStep
from pruning.cutting.rewriting.sparsify_checkpoint import Sparsity, sparsify_checkpoint
from pruning.cutting.rewriting.sparsity import Pattern
from pruning.data.batches import BatchStream, make_batches
from pruning.data.conversations import Conversation, calibration_id
from pruning.errors import InputError, UnsupportedModelError
from tests.pruning.cut_models import inputs_of, logits_of, next_token_logits
from tests.pruning.packed_models import save_cut_checkpoint
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


def note_weights(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """By the names of the checkpoint, the weights that inputs are propagated through, as they are made."""
    kept: dict[str, torch.Tensor] = {}
    put = BlockFiles.put

    def noted(files: BlockFiles, block: Block, made: Rewritten) -> None:
        reader = Quantiser(Rounding.NEAREST, {})
        kept.update({x.name: reader.weight(x, made.tensors) for x in block.projections})  # type: ignore[misc]
        put(files, block, made)

    monkeypatch.setattr(BlockFiles, "put", noted)
    return kept


@torch.no_grad()
def put_in(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> None:
    """Into `model`, all of whose weights they change."""
    own = dict(model.get_decoder().named_parameters())
    for name, weight in weights.items():
        place = decoder_tensor(name)
        assert place is not None
        parameter = own[f"layers.{place[0]}.{place[1]}"]
        assert not torch.equal(parameter, weight)
        parameter.copy_(weight)


@pytest.mark.parametrize("rounding", list(Rounding))
def test_transformers_reads_back_what_was_rounded(
    rounding: Rounding, wide: Path, conversations: list[Conversation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four bits and eight side by side: the logits are those of the weights that inputs were propagated through."""
    kept = note_weights(monkeypatch)
    report = run(wide, tmp_path / "out", Quantisation(rounding, (4, 8, 4, 4), 32), conversations)
    expected = load_model(wide)
    put_in(expected, kept)
    found = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto")
    assert torch.equal(next_token_logits(found), next_token_logits(expected))
    assert len(kept) == 4 * 7
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


@pytest.mark.parametrize("rounding", list(Rounding))
def test_what_was_cut_is_quantised_as_it_stands(
    rounding: Rounding, wide: Path, conversations: list[Conversation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sub-layers of other sizes, and skipped ones; in 8 bits, 4 bits, and its own type what 32 does not divide."""
    cut, out = save_cut_checkpoint(tmp_path / "cut", wide), tmp_path / "out"
    kept = note_weights(monkeypatch)
    data = conversations if rounding is Rounding.GPTQ else None
    report = run(cut, out, Quantisation(rounding, (4, 8, 4, 8), 32), data)
    expected, found = load_pruned(cut), load_pruned(out)
    put_in(expected, kept)
    for kind, inputs in inputs_of("llava-llama").items():
        assert torch.equal(logits_of(found, inputs), logits_of(expected, inputs)), kind
    prefix = "language_model.model.layers"
    assert report["plain"] == {f"{prefix}.1.self_attn.o_proj.weight": 16, f"{prefix}.3.mlp.down_proj.weight": 40}
    assert len(kept) == 7 + 4 + 7 - 2
    assert report["bits"] == [4, 8, 4, 8]
    assert report["weights_bytes"] == sum(x.num_bytes for x in stored_tensors(out).values()) < report["dense_bytes"]
    # What tells of the cut stays, and what it is now is told.
    assert (out / PLAN_NAME).read_bytes() == (cut / PLAN_NAME).read_bytes()
    own, before = (json.loads((x / "config.json").read_text()) for x in (out, cut))
    assert own["text_config"]["per_layer_config"] == before["text_config"]["per_layer_config"]
    inspected = inspect_checkpoint(out)
    assert [x.ffn_bits for x in inspected.layers] == [4, None, None, 8]
    assert [x.attention_bits for x in inspected.layers] == [4, 8, None, 8]
    assert inspected.base.hub_id == "lab/tiny"
    assert inspected.plan == inspect_checkpoint(cut).plan
    assert card_metadata(out)["tags"] == ["lop", "pruned", "quantised"]
    assert "2 projections, whose inputs come in no whole groups" in (out / CARD_NAME).read_text()
    assert (out / "README-pruned.md").read_text() == (cut / CARD_NAME).read_text()
    with pytest.raises(UnsupportedModelError, match="unquantised"):
        run(out, tmp_path / "again", Quantisation(Rounding.NEAREST, (8,), 32))
    with pytest.raises(InputError, match=r"has 32 inputs\)\. Choose --group 32"):
        run(cut, tmp_path / "again", Quantisation(Rounding.NEAREST, (8,), 64))


@pytest.mark.usefixtures("registered")
def test_where_transformers_builds_pruned_models_by_itself(
    wide: Path, conversations: list[Conversation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Biases that compensate are read with the layers."""
    cut, out = save_cut_checkpoint(tmp_path / "cut", wide, compensates=True), tmp_path / "out"
    kept = note_weights(monkeypatch)
    run(cut, out, Quantisation(Rounding.GPTQ, (8,), 32), conversations)
    found, expected = (AutoModelForImageTextToText.from_pretrained(x, dtype="auto") for x in (out, cut))
    put_in(expected, kept)
    assert [name for name in stored_tensors(out) if name.endswith("down_proj.bias")]
    assert torch.equal(next_token_logits(found), next_token_logits(expected))


@pytest.mark.parametrize("rounding", list(Rounding))
@pytest.mark.parametrize("is_cut", [False, True], ids=["dense", "cut"])
def test_what_was_sparsified_keeps_its_zeros(
    is_cut: bool, rounding: Rounding, wide: Path, conversations: list[Conversation], tmp_path: Path
) -> None:
    """The config goes on saying 2:4, and so it is."""
    source = save_cut_checkpoint(tmp_path / "cut", wide) if is_cut else wide
    sparse, out = tmp_path / "sparse", tmp_path / "out"
    batches = BatchStream(conversations, load_processor(source), batch_size=4, max_tokens=1000)
    asked = Sparsity(LocalStep.SPARSEGPT, 0.5, {"name": "uniform"}, Pattern(2, 4))
    sparsify_checkpoint(source, sparse, asked, batches, calibration_id(conversations), CPU)
    run(sparse, out, Quantisation(rounding, (4,), 32), conversations if rounding is Rounding.GPTQ else None)
    assert json.loads((out / "config.json").read_text())[SPARSITY_KEY]["pattern"] == "2:4"
    assert (out / SPARSITY_REPORT).read_bytes() == (sparse / SPARSITY_REPORT).read_bytes()
    found, before = load_model(out), load_model(sparse)
    unpack_weights(found)
    linears = {n: x for n, x in before.get_decoder().named_modules() if isinstance(x, torch.nn.Linear)}
    assert len(linears) == (18 if is_cut else 28)
    for name, linear in linears.items():
        weight = found.get_decoder().get_submodule(name).weight
        assert not weight[linear.weight == 0].any(), name
        assert ((weight != 0).reshape(-1, 4).sum(1) <= 2).all(), name
        assert weight.any(), name
    assert "Weights that were zero still are." in (out / CARD_NAME).read_text()


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
