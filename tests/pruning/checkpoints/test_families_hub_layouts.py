"""Checkpoints as the hub has them: read, cut from files and in memory, reloaded, and what they say of their heads."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pruning.checkpoints.anatomy_reader import anatomy_of, read_anatomy
from pruning.checkpoints.headers import read_headers
from pruning.checkpoints.loading import load_model, load_pruned
from pruning.cutting.prune_checkpoint import prune_checkpoint, save_pruned
from pruning.cutting.surgery import apply_plan
from pruning.planning.cost import achieved_costs
from tests.pruning.cut_models import WIDTHS, kept_groups, plan_for, random_ranking, silence, text_inputs, weight_bytes
from tests.pruning.hub_checkpoints import (
    EMBEDDINGS,
    HEAD,
    HUB_LAYOUTS,
    WEIGHTS,
    Tensors,
    change_tensors,
    head_name,
    save_hub_checkpoint,
)

UNTIED_BY_DEFAULT = "InternVL3-8B-hf"
FLAG_BELOW = ("llava-onevision-qwen2-0.5b-ov-hf",)  # false at the top, true in the text config, which counts
TIED = ("Llama-3.2-1B", "llava-onevision-qwen2-0.5b-ov-hf", "Qwen2.5-VL-3B-Instruct", "gemma-3-4b-it")


def logits(model: torch.nn.Module) -> torch.Tensor:
    inputs = text_inputs()
    with torch.inference_mode():
        found: torch.Tensor = model(**inputs, use_cache=False).logits
    return found


def add_head(folder: Path, *, like_embeddings: bool) -> None:
    def change(tensors: Tensors) -> Tensors:
        embeddings = next(x for name, x in tensors.items() if name.endswith(EMBEDDINGS))
        torch.manual_seed(3)
        return tensors | {head_name(tensors): embeddings.clone() if like_embeddings else torch.randn_like(embeddings)}

    change_tensors(folder, change)


def keep_only_head(folder: Path) -> None:
    def change(tensors: Tensors) -> Tensors:
        name = next(name for name in tensors if name.endswith(EMBEDDINGS))
        return {head_name(tensors) if x == name else x: tensor for x, tensor in tensors.items()}

    change_tensors(folder, change)


def check_cut(dense: Path, folder: Path) -> Path:
    """Cut `dense` in both ways and hold both against the silenced dense model; the folder cut from files."""
    anatomy = read_anatomy(dense)
    model, twin = load_model(dense, dtype=torch.float32), load_model(dense, dtype=torch.float32)
    assert anatomy_of(model).fingerprint == anatomy.fingerprint
    assert anatomy.total_parameters == sum(p.numel() for p in model.parameters())
    ranking = random_ranking(anatomy)
    plan = plan_for(anatomy, ranking, WIDTHS, kept_groups(anatomy))
    silence(twin, plan.architecture(anatomy), ranking)
    expected = logits(twin)
    out = prune_checkpoint(dense, plan, ranking, folder / "files")
    from_memory = save_pruned(apply_plan(model, plan, ranking), plan, folder / "memory")
    assert plan.achieved.disk_bytes == weight_bytes(out)
    for cut in (out, from_memory):
        reloaded = load_pruned(cut, dtype=torch.float32)
        torch.testing.assert_close(logits(reloaded), expected, rtol=1e-4, atol=1e-5)
        assert sum(p.numel() for p in reloaded.parameters()) == plan.achieved.parameters
    return out


@pytest.mark.parametrize("name", HUB_LAYOUTS)
def test_a_checkpoint_as_the_hub_has_it(name: str, tmp_path: Path) -> None:
    dense = save_hub_checkpoint(tmp_path / "dense", name)
    out = check_cut(dense, tmp_path)
    source, written = (json.loads((folder / "config.json").read_text()) for folder in (dense, out))
    assert "auto_map" not in written
    if "text_config" in source:  # nothing but what was cut is new; a flat config is written anew
        assert source.keys() - {"auto_map"} <= written.keys()
    extra = HUB_LAYOUTS[name].extra().keys()
    assert extra <= read_headers(dense).keys()
    assert not extra & read_headers(out).keys()


@pytest.mark.parametrize("name", [UNTIED_BY_DEFAULT, "Mistral-Small-3.1-24B-Instruct-2503", "paligemma-3b-pt-224"])
def test_a_head_that_the_config_ties_and_the_files_do_not(name: str, tmp_path: Path) -> None:
    """The flag is absent, and transformers' class says that it is true."""
    dense = save_hub_checkpoint(tmp_path / "dense", name)
    tied = read_anatomy(dense)
    add_head(dense, like_embeddings=False)
    untied = read_anatomy(dense)
    assert untied.total_parameters - tied.total_parameters == 32 * 128
    assert untied.fingerprint != tied.fingerprint
    out = check_cut(dense, tmp_path)
    stored, written = load_file(dense / WEIGHTS), load_file(out / WEIGHTS)
    assert torch.equal(written[head_name(stored)], stored[head_name(stored)])
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    model = load_pruned(out, dtype=torch.float32)
    assert torch.equal(model.get_output_embeddings().weight, stored[head_name(stored)])
    assert not torch.equal(model.get_input_embeddings().weight, model.get_output_embeddings().weight)


@pytest.mark.parametrize("name", [UNTIED_BY_DEFAULT, *TIED])
def test_a_tied_head_that_is_stored_twice_is_written_once(name: str, tmp_path: Path) -> None:
    dense = save_hub_checkpoint(tmp_path / "dense", name)
    once = read_anatomy(dense)
    add_head(dense, like_embeddings=True)
    assert read_anatomy(dense) == once
    out = check_cut(dense, tmp_path)
    assert not any(name.endswith(HEAD) for name in read_headers(out))
    assert json.loads((out / "config.json").read_text()).get("tie_word_embeddings") is not False or name in FLAG_BELOW


@pytest.mark.parametrize("name", TIED)
def test_a_tied_head_that_is_stored_instead_of_the_embeddings(name: str, tmp_path: Path) -> None:
    dense = save_hub_checkpoint(tmp_path / "dense", name)
    once = read_anatomy(dense)
    keep_only_head(dense)
    anatomy = read_anatomy(dense)
    assert (anatomy.fingerprint, anatomy.total_parameters) == (once.fingerprint, once.total_parameters)
    out = check_cut(dense, tmp_path)
    assert [name for name in read_headers(out) if name.endswith((HEAD, EMBEDDINGS))] == [
        name for name in read_headers(dense) if name.endswith(HEAD)
    ]


def test_buffers_of_old_exports_neither_count_nor_are_written(tmp_path: Path) -> None:
    dense = save_hub_checkpoint(tmp_path / "dense", "Llama-2-7b-hf")
    before = read_anatomy(dense)
    change_tensors(dense, lambda tensors: {name: x for name, x in tensors.items() if "inv_freq" not in name})
    assert read_anatomy(dense) == before
    assert achieved_costs(before, before.architecture([48] * 4)).disk_bytes == weight_bytes(dense)
