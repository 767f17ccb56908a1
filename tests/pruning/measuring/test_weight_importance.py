"""The ranking by weights alone: worked by hand, and against the obvious computation on whole weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Phi3Config, Phi3ForCausalLM, PhiConfig, PhiForCausalLM, PreTrainedModel

from pruning.anatomy.decoder_view import decoder_view
from pruning.checkpoints.anatomy_reader import anatomy_of, read_anatomy
from pruning.checkpoints.loading import load_model
from pruning.errors import CheckpointError
from pruning.measuring.weight_importance import rank_by_weights
from pruning.planning.ranking import Ranking
from tests.tiny_models import BUILDERS, save_tiny_checkpoint

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def obvious(model: PreTrainedModel) -> Ranking:
    """||W_down[:, j]||, and the sum over a group's heads of ||W_out,h W_v||_F, from whole matrices."""
    view, anatomy = decoder_view(model), anatomy_of(model)
    channels, groups = [], []
    for layer in anatomy.layers:
        G, H, d = layer.num_kv_groups, layer.num_heads, layer.head_dim
        channels.append(view.out_projection(layer.index).weight.detach().double().norm(dim=0).numpy())
        out = view.attention_out(layer.index).weight.detach().double()
        last_in = view.projection(layer.index, view.family.attention_in[-1]).weight.detach().double()
        values = last_in[-G * d :]
        scores = np.zeros(G)
        for head in range(H):
            group = head // (H // G)
            product = out[:, head * d : (head + 1) * d] @ values[group * d : (group + 1) * d]
            scores[group] += float(product.norm())
        groups.append(scores)
    return Ranking.from_scores(anatomy, channels, group_scores=groups)


def assert_ranks(folder: Path, expected: Ranking) -> Ranking:
    ranking = rank_by_weights(folder, read_anatomy(folder))
    assert ranking.sha256 == expected.sha256
    return ranking


@pytest.mark.parametrize("block_values", [2**20, 100])
@pytest.mark.parametrize("family", BUILDERS)
def test_every_family(family: str, block_values: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruning.measuring.weight_importance.BLOCK_VALUES", block_values)
    folder = save_tiny_checkpoint(tmp_path / "model", family, shard="40KB")
    assert_ranks(folder, obvious(load_model(folder)))


def test_fused_projections(tmp_path: Path) -> None:
    torch.manual_seed(0)
    Phi3ForCausalLM(Phi3Config(**SIZES)).save_pretrained(tmp_path)
    assert_ranks(tmp_path, obvious(load_model(tmp_path)))


def test_an_ungated_ffn_with_biases(tmp_path: Path) -> None:
    torch.manual_seed(0)
    PhiForCausalLM(PhiConfig(**SIZES)).save_pretrained(tmp_path)
    assert_ranks(tmp_path, obvious(load_model(tmp_path)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    load_model(save_tiny_checkpoint(tmp_path / "dense"), dtype=dtype).save_pretrained(tmp_path / "other")
    assert_ranks(tmp_path / "other", obvious(load_model(tmp_path / "other")))


@pytest.mark.parametrize(("value_scale", "order"), [(2.0, [0, 1]), (1.5, [1, 0])])
def test_worked_by_hand(value_scale: float, order: list[int], tmp_path: Path) -> None:
    """Channel j has norm |j - 20.25|. Heads read with 1 and 2, 5 and 0; groups hold value_scale and 1."""
    folder = save_tiny_checkpoint(tmp_path / "model")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    down, out, values = (
        next(name for name in tensors if f"layers.2.{inside}.weight" in name and "vision" not in name)
        for inside in ("mlp.down_proj", "self_attn.o_proj", "self_attn.v_proj")
    )
    for name in (down, out, values):
        tensors[name].zero_()
    tensors[down][3] = torch.arange(48) - 20.25
    tensors[out][5, [0, 8, 16, 24]] = torch.tensor([1.0, -2.0, 5.0, 0.0])
    tensors[values][0, 7] = value_scale
    tensors[values][8, 2] = 1.0
    tensors[values][1] = 100.0  # no head reads it
    save_file(tensors, path, metadata={"format": "pt"})
    ranking = rank_by_weights(folder, read_anatomy(folder))
    assert ranking.ffn[2].tolist() == sorted(range(48), key=lambda j: -abs(j - 20.25))
    assert ranking.kv_groups is not None
    assert ranking.kv_groups[2].tolist() == order


def test_progress_counts_what_is_read(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "model")
    told: list[tuple[int, int]] = []
    rank_by_weights(folder, read_anatomy(folder), on_bytes=lambda *x: told.append(x))
    a_layer = 4 * (32 * 48 + 32 * 32 + 16 * 32)  # float32: down, out, value rows of two groups of 8
    assert told == [(a_layer * done, a_layer * 4) for done in (1, 2, 3, 4)]


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "model")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[next(name for name in tensors if "layers.1.mlp.down_proj" in name)][0, 0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"finite.*layers\.1\.mlp\.down_proj"):
        rank_by_weights(folder, read_anatomy(folder))
