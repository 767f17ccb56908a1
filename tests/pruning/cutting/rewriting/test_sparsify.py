"""Checkpoints that are sparsified from files to files: each layer from inputs that come through those before it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from pruning.checkpoints.headers import stored_tensors
from pruning.checkpoints.loading import PLAN_NAME, load_model, load_processor, load_pruned
from pruning.cutting.base_model import CARD_NAME, card_metadata
from pruning.cutting.pruned_config import SPARSITY_KEY
from pruning.cutting.rewriting.blocks import Block, Part, vision_blocks
from pruning.cutting.rewriting.source import SPARSITY_REPORT
from pruning.cutting.rewriting.sparsifier import LocalStep, StepInputs
from pruning.cutting.rewriting.sparsify_checkpoint import (
    Modules,
    Sparsity,
    SparsityReport,
    alike_within,
    sparsify_checkpoint,
)
from pruning.cutting.rewriting.sparsity import Pattern, wanda
from pruning.cutting.streaming.solved import solved_folder
from pruning.data.batches import BatchStream
from pruning.data.conversations import Conversation, calibration_id
from pruning.errors import CheckpointError, InputError
from tests.pruning.packed_models import save_cut_checkpoint, save_wide_checkpoint
from tests.tiny_models import save_tiny_checkpoint

CPU = torch.device("cpu")
UNIFORM = {"name": "uniform"}


def run(folder: Path, out: Path, data: list[Conversation], asked: Sparsity, **options: Any) -> SparsityReport:
    batches = BatchStream(data, load_processor(folder), batch_size=4, max_tokens=1000)
    return sparsify_checkpoint(folder, out, asked, batches, calibration_id(data), CPU, **options)


def linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    return {name: x for name, x in model.named_modules() if isinstance(x, nn.Linear) and "layers." in name}


def by_hand(model: PreTrainedModel, names: list[list[str]], data: list[Conversation], folder: Path) -> None:
    """Wanda on the whole model at once, layer after layer, with hooks on whole forward passes."""
    own = linears(model)
    stream = BatchStream(data, load_processor(folder), batch_size=4, max_tokens=1000)
    for layer in names:
        squares = dict.fromkeys(layer, torch.zeros(1))
        handles, mask = [], torch.empty(0)

        def hook(name: str) -> Callable[..., None]:
            def add(_module: nn.Module, args: tuple[torch.Tensor]) -> None:
                x = args[0]
                rows = x[mask.bool()] if x.shape[:2] == mask.shape else x.flatten(0, -2)  # noqa: B023
                squares[name] = squares[name] + rows.square().sum(0)  # noqa: B023

            return add

        handles = [own[name].register_forward_pre_hook(hook(name)) for name in layer]
        for batch in stream:
            mask = batch.inputs["attention_mask"]
            with torch.inference_mode():
                model(**batch.inputs)
        for handle in handles:
            handle.remove()
        for name in layer:
            with torch.no_grad():
                own[name].weight.copy_(wanda(own[name].weight, squares[name].double(), 0.5))


def test_each_layer_sees_what_the_sparse_layers_before_it_make(
    checkpoint: Path, conversations: list[Conversation], tmp_path: Path
) -> None:
    """The vision tower, then the decoder, are those of whole forward passes."""
    out = tmp_path / "out"
    report = run(checkpoint, out, conversations, Sparsity(LocalStep.WANDA, 0.5, UNIFORM, modules=Modules.ALL))
    expected, found = load_model(checkpoint), AutoModelForImageTextToText.from_pretrained(out)
    names = list(linears(expected))
    order = [
        [x for x in names if f"{part}.layers.{i}." in x]
        for part, n in (("encoder", 2), ("language_model", 4))
        for i in range(n)
    ]
    by_hand(expected, order, conversations, checkpoint)
    assert sum(map(len, order)) == len(names) == 2 * 6 + 4 * 7
    for name, linear in linears(expected).items():
        torch.testing.assert_close(linears(found)[name].weight, linear.weight, rtol=1e-6, atol=1e-7)
    zeros = sum(int((x.weight == 0).sum()) for x in linears(found).values())
    document = json.loads((out / SPARSITY_REPORT).read_text())
    assert (document["zeroed"], document["removed"]) == (zeros, 0)
    assert report.density == 0.5
    assert getattr(found.config, SPARSITY_KEY)["zeroed"] == zeros
    # Nothing else changed, and nothing is left beside the output.
    dense = load_model(checkpoint).state_dict()
    others = {name for name, x in found.state_dict().items() if not torch.equal(x, dense[name])}
    assert others == {f"{name}.weight" for name in names}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_was_cut_is_sparsified_as_it_stands(conversations: list[Conversation], tmp_path: Path) -> None:
    """By what comes through its own layers, of which one is gone; sizes, plan and what tells of the cut stay."""
    dense = save_wide_checkpoint(tmp_path / "wide", dtype=torch.float32)
    cut, out = save_cut_checkpoint(tmp_path / "cut", dense), tmp_path / "out"
    report = run(cut, out, conversations, Sparsity(LocalStep.WANDA, 0.5, UNIFORM))
    expected, found = load_pruned(cut), load_pruned(out)
    names = [name for name in linears(expected) if "language_model" in name]
    by_hand(expected, [[x for x in names if f".layers.{i}." in x] for i in (0, 1, 3)], conversations, cut)
    for name, linear in linears(expected).items():
        torch.testing.assert_close(linears(found)[name].weight, linear.weight, rtol=1e-6, atol=1e-7)
    assert [(x["layer"], len(x["projections"])) for x in report.layers] == [(0, 7), (1, 4), (3, 7)]
    assert report.density == pytest.approx(0.5, abs=1e-3)
    assert (out / PLAN_NAME).read_bytes() == (cut / PLAN_NAME).read_bytes()
    sizes = [json.loads((x / "config.json").read_text())["text_config"]["per_layer_config"] for x in (out, cut)]
    assert sizes[0] == sizes[1]
    card = (out / CARD_NAME).read_text()
    assert card_metadata(out)["base_model"] == "lab/tiny"
    assert card_metadata(out)["tags"] == ["lop", "pruned", "sparsified"]
    assert "`lop.load_pruned(FOLDER)` loads it" in card
    assert (out / "README-pruned.md").read_text() == (cut / CARD_NAME).read_text()


def test_half_precision_tied_weights_and_own_densities(tmp_path: Path, conversations: list[Conversation]) -> None:
    load_model(save_tiny_checkpoint(tmp_path / "wide", "llava-llama-tied"), dtype=torch.bfloat16).save_pretrained(
        folder := tmp_path / "dense"
    )
    load_processor(tmp_path / "wide").save_pretrained(folder)
    asked = Sparsity(LocalStep.SPARSEGPT, 0.6, {"name": "mine"})
    wished = [1.0, 0.2, 0.6, 0.6]
    report = run(folder, tmp_path / "out", conversations, asked, densities=lambda x: alike_within(x, wished))
    assert [x["density"] for x in report.layers] == pytest.approx(wished, abs=0.002)
    found, dense = (AutoModelForImageTextToText.from_pretrained(x, dtype="auto") for x in (tmp_path / "out", folder))
    assert found.dtype is torch.bfloat16
    assert found.lm_head.weight.data_ptr() == found.get_input_embeddings().weight.data_ptr()
    first = [name for name in linears(found) if "language_model.layers.0." in name]
    assert all(torch.equal(linears(found)[x].weight, linears(dense)[x].weight) for x in first)
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.safetensors")}
    assert {path.name: path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")} == sizes


@pytest.mark.parametrize("step", list(LocalStep))
def test_patterns_hold_in_every_projection(
    step: LocalStep, checkpoint: Path, conversations: list[Conversation], tmp_path: Path
) -> None:
    run(checkpoint, tmp_path / "out", conversations, Sparsity(step, 0.5, UNIFORM, Pattern(2, 4), Modules.ALL))
    for linear in linears(load_model(tmp_path / "out")).values():
        assert ((linear.weight != 0).reshape(-1, 4).sum(1) <= 2).all()


def test_an_interrupted_run_goes_on(checkpoint: Path, conversations: list[Conversation], tmp_path: Path) -> None:
    """It writes the same bytes, asks for densities once, and makes finished layers no second time: here those of the
    tower, which no picture goes through layer by layer again, and the first of the decoder."""
    asked = Sparsity(LocalStep.SPARSEGPT, 0.5, {"name": "mine"}, modules=Modules.ALL)
    calls: list[int] = []

    def densities(blocks: Sequence[Block]) -> dict[str, float]:
        calls.append(len(blocks))
        return alike_within(blocks, [0.5, 0.6, 0.3, 0.7, 0.4, 0.6])

    def stopped(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    run(checkpoint, tmp_path / "whole", conversations, asked, densities=densities)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint, tmp_path / "out", conversations, asked, densities=densities, on_batch=stopped)
    assert not (tmp_path / "out").exists()
    finished = sorted(solved_folder(tmp_path / "out").glob("*.safetensors"))
    assert [path.stem for path in finished] == ["language-00000", "vision-00000", "vision-00001"]
    written = [path.stat().st_mtime_ns for path in finished]
    passes: list[int] = []

    def on_batch(done: int, _total: int) -> None:
        passes.append(done)
        assert [path.stat().st_mtime_ns for path in finished] == written

    run(checkpoint, tmp_path / "out", conversations, asked, densities=densities, on_batch=on_batch)
    assert calls == [6, 6]
    # The front end, once through the decoder's first layer, twice through each but the last, which is recorded only.
    assert passes[-1] == (1 + 1 + 2 + 2 + 1) * len(conversations)
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_by_dense_inputs_each_layer_is_passed_once(
    checkpoint: Path, conversations: list[Conversation], tmp_path: Path
) -> None:
    """All inputs are those of whole forward passes of the dense model; a run that was stopped records no layer anew."""
    asked = Sparsity(LocalStep.WANDA, 0.5, UNIFORM, modules=Modules.ALL, inputs=StepInputs.DENSE)
    told: list[tuple[int, int]] = []

    def stopped(done: int, total: int) -> None:
        told.append((done, total))
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(checkpoint, tmp_path / "out", conversations, asked, on_batch=stopped)
    # The front end and two layers of the tower, the front end and four layers of the decoder.
    assert told[-1][1] == (1 + 2 + 1 + 4) * len(conversations)
    told.clear()
    run(checkpoint, tmp_path / "out", conversations, asked, on_batch=lambda *now: told.append(now))
    assert told[-1] == ((1 + 4) * len(conversations),) * 2
    run(checkpoint, tmp_path / "whole", conversations, asked, on_batch=lambda *now: told.append(now))
    assert told[-1] == ((1 + 2 + 1 + 4) * len(conversations),) * 2
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    expected, found = load_model(checkpoint), linears(load_model(tmp_path / "out"))
    by_hand(expected, [list(linears(expected))], conversations, checkpoint)
    for name, linear in linears(expected).items():
        torch.testing.assert_close(found[name].weight, linear.weight, rtol=1e-6, atol=1e-7)


def test_what_is_refused(checkpoint: Path, conversations: list[Conversation], tmp_path: Path) -> None:
    text = [Conversation(x.id, None, x.turns) for x in conversations]
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"need pictures.*no conversation has one"):
        run(checkpoint, out, text, Sparsity(LocalStep.WANDA, 0.5, UNIFORM, modules=Modules.VISION))
    with pytest.raises(InputError, match=r"whole groups of 5 .*self_attn.q_proj of language layer 0 has 32 inputs"):
        run(checkpoint, out, text, Sparsity(LocalStep.WANDA, 0.4, UNIFORM, Pattern(2, 5)))
    with pytest.raises(InputError, match="over 0 and at most 1"):
        Sparsity(LocalStep.WANDA, 1.5, UNIFORM)
    alone = save_tiny_checkpoint(tmp_path / "alone", "phi")
    with pytest.raises(InputError, match="only a model with a vision tower"):
        run(alone, out, text, Sparsity(LocalStep.WANDA, 0.5, UNIFORM, modules=Modules.ALL))
    model = load_model(checkpoint)
    with torch.no_grad():
        model.get_decoder().layers[1].mlp.up_proj.weight[:] = 1e30
    model.save_pretrained(tmp_path / "broken")
    load_processor(checkpoint).save_pretrained(tmp_path / "broken")
    with pytest.raises(CheckpointError, match=r"NaN or infinity enters mlp.down_proj of language layer 1"):
        run(tmp_path / "broken", out, conversations, Sparsity(LocalStep.SPARSEGPT, 0.5, UNIFORM))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "broken"]


@pytest.mark.parametrize("family", ["phi", "phi3", "gemma2"])
def test_language_families(family: str, tmp_path: Path, conversations: list[Conversation]) -> None:
    """Fused projections too: one matrix is one matrix."""
    folder = save_tiny_checkpoint(tmp_path / "dense", family)
    text = [Conversation(x.id, None, x.turns) for x in conversations]
    report = run(folder, tmp_path / "out", text, Sparsity(LocalStep.SPARSEGPT, 0.5, UNIFORM))
    assert report.density == pytest.approx(0.5, abs=1e-3)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(float((x.weight == 0).float().mean()) == pytest.approx(0.5, abs=0.01) for x in linears(model).values())


@pytest.mark.parametrize("family", ["qwen2-vl", "qwen2.5-vl", "qwen3-vl", "internvl-qwen2", "idefics3", "paligemma"])
def test_vision_layers_of_families_are_found_in_their_files(family: str, tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "dense", family)
    blocks = vision_blocks(load_model(folder), stored_tensors(folder))
    assert [(x.part, x.index) for x in blocks] == [(Part.VISION, i) for i in range(len(blocks))]
    assert len(blocks) >= 2
    names = [x.name for block in blocks for x in block.projections]
    assert len(names) == len(set(names)) >= 4 * len(blocks)


def test_what_is_cut_afterwards_claims_no_pattern(
    checkpoint: Path, conversations: list[Conversation], tmp_path: Path
) -> None:
    """Its rows are shorter: of four weights in a row, others are zero."""
    sparse = tmp_path / "sparse"
    run(checkpoint, sparse, conversations, Sparsity(LocalStep.WANDA, 0.5, UNIFORM, Pattern(2, 4)))
    cut = save_cut_checkpoint(tmp_path / "cut", sparse)
    assert SPARSITY_KEY in json.loads((sparse / "config.json").read_text())
    assert SPARSITY_KEY not in json.loads((cut / "config.json").read_text())
    assert not (cut / SPARSITY_REPORT).exists()
