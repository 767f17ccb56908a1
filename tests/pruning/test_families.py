"""Every supported family: cut, compared with its zeroed dense twin, saved, reloaded, generated with."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from pruning.anatomy import ModelAnatomy
from pruning.anatomy_reader import anatomy_of, read_anatomy
from pruning.checkpoint import load_model, load_pruned
from pruning.cost import price
from pruning.decoder import decoder_view
from pruning.families import FFN_FAMILIES
from pruning.plan import PlanRanking, PlanTarget, PruningPlan
from pruning.planning import make_plan
from pruning.prune_checkpoint import prune_checkpoint, save_pruned
from pruning.ranking import Ranking
from pruning.surgery import apply_plan
from tests.tiny_models import BUILDERS, save_tiny_checkpoint

WIDTHS = [16, 8, 48, 40]


def random_ranking(anatomy: ModelAnatomy) -> Ranking:
    rng = np.random.default_rng(0)
    return Ranking.from_scores(anatomy, [rng.random(x.ffn_width) for x in anatomy.layers])


def plan_for(anatomy: ModelAnatomy, ranking: Ranking, widths: list[int]) -> PruningPlan:
    return make_plan(
        anatomy,
        widths,
        model_id="tiny",
        target=PlanTarget(sparsity=0.3),
        method="test",
        ranking=PlanRanking(sha256=ranking.sha256),
    )


def zero_channels(model: PreTrainedModel, widths: list[int], ranking: Ranking) -> None:
    """The dense model with the channels that a plan removes silenced, and nothing cut."""
    view = decoder_view(model)
    for layer, width in enumerate(widths):
        removed = torch.from_numpy(ranking.ffn[layer][width:]).long()
        with torch.no_grad():
            view.out_projection(layer).weight[:, removed] = 0


def next_token_logits(model: PreTrainedModel) -> torch.Tensor:
    """Logits [1, T, V] of the language model on a text."""
    torch.manual_seed(1)
    ids = torch.randint(7, 100, (1, 12))
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return logits


def weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


@pytest.mark.parametrize("family", BUILDERS)
def test_a_family_is_cut_saved_and_reloaded_exactly(family: str, tmp_path: Path) -> None:
    dense = save_tiny_checkpoint(tmp_path / "dense", family, shard="60KB")
    anatomy, model = read_anatomy(dense), load_model(dense)
    ranking = random_ranking(anatomy)
    plan = plan_for(anatomy, ranking, WIDTHS)

    silenced = load_model(dense)
    zero_channels(silenced, WIDTHS, ranking)
    apply_plan(model, plan, ranking)
    torch.testing.assert_close(next_token_logits(model), next_token_logits(silenced), rtol=1e-4, atol=1e-5)
    assert plan.achieved.parameters == sum(p.numel() for p in model.parameters())

    from_files = prune_checkpoint(dense, plan, ranking, tmp_path / "files")
    from_memory = save_pruned(model, plan, tmp_path / "memory")
    assert weight_bytes(from_files) == plan.achieved.disk_bytes
    for folder in (from_files, from_memory):
        reloaded = load_pruned(folder)
        assert type(reloaded) is type(model)
        for (name, a), (_, b) in zip(model.state_dict().items(), reloaded.state_dict().items(), strict=True):
            assert torch.equal(a, b), name
        assert torch.equal(next_token_logits(reloaded), next_token_logits(model))

    ids = torch.randint(7, 100, (1, 5))
    tokens = load_pruned(from_files).generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=4, min_new_tokens=4
    )
    assert tokens.shape == (1, 9)


@pytest.mark.parametrize("family", BUILDERS)
def test_anatomy_is_the_same_from_files_and_from_memory(family: str, tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "dense", family)
    from_files, from_memory = read_anatomy(folder), anatomy_of(load_model(folder))
    assert from_files.fingerprint == from_memory.fingerprint
    assert from_files.layers == from_memory.layers
    parameters = sum(p.numel() for p in load_model(folder).parameters())
    assert from_files.total_parameters == from_memory.total_parameters == parameters
    assert ModelAnatomy.from_dict(from_files.to_dict()) == from_files


def test_every_row_of_the_table_is_tried(tmp_path: Path) -> None:
    tried = {read_anatomy(save_tiny_checkpoint(tmp_path / name, name)).text_model_type for name in BUILDERS}
    assert tried == set(FFN_FAMILIES)


def test_a_flat_config_is_pruned_and_reloaded(tmp_path: Path) -> None:
    """Qwen2-VL is published with the language model's fields at the top of config.json."""
    dense = save_tiny_checkpoint(tmp_path / "dense", "qwen2-vl")
    document = json.loads((dense / "config.json").read_text())
    document |= {k: v for k, v in document.pop("text_config").items() if k != "model_type"}
    (dense / "config.json").write_text(json.dumps(document))
    anatomy = read_anatomy(dense)
    ranking = random_ranking(anatomy)
    out = prune_checkpoint(dense, plan_for(anatomy, ranking, WIDTHS), ranking, tmp_path / "out")
    view = decoder_view(load_pruned(out))
    assert [view.out_projection(i).in_features for i in range(4)] == WIDTHS


def test_integer_buffers_of_old_exports_do_not_count(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "old")
    before = read_anatomy(folder)
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "vision_tower.embeddings.position_ids": torch.arange(5)}, weights, metadata={"format": "pt"})
    after = read_anatomy(folder)
    assert (after.fingerprint, after.total_parameters) == (before.fingerprint, before.total_parameters)
    assert price(after, [48] * 4).disk_bytes == weight_bytes(folder)


def test_fingerprints_tell_shapes_apart_but_not_weights(tmp_path: Path) -> None:
    first = read_anatomy(save_tiny_checkpoint(tmp_path / "a", seed=0)).fingerprint
    assert read_anatomy(save_tiny_checkpoint(tmp_path / "b", seed=1)).fingerprint == first
    assert read_anatomy(save_tiny_checkpoint(tmp_path / "c", "llava-llama-biases")).fingerprint != first


def test_a_pruned_checkpoint_loads_in_a_new_process_with_the_same_logits(checkpoint: Path, tmp_path: Path) -> None:
    anatomy = read_anatomy(checkpoint)
    ranking = random_ranking(anatomy)
    model = apply_plan(load_model(checkpoint), plan_for(anatomy, ranking, WIDTHS), ranking)
    folder = prune_checkpoint(checkpoint, plan_for(anatomy, ranking, WIDTHS), ranking, tmp_path / "pruned")
    code = (
        "import sys, lop; from tests.pruning.test_families import next_token_logits as f;"
        "print(float(f(lop.load_pruned(sys.argv[1])).double().sum()).hex())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path.cwd(),
        env={"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error", "PATH": "/usr/bin"},
    )
    assert done.stdout.strip() == float(next_token_logits(model).double().sum()).hex()


def test_the_cut_layers_have_the_plans_shapes(checkpoint: Path) -> None:
    anatomy, model = read_anatomy(checkpoint), load_model(checkpoint)
    ranking = random_ranking(anatomy)
    apply_plan(model, plan_for(anatomy, ranking, WIDTHS), ranking)
    for ffn, width in zip(decoder_view(model).ffns, WIDTHS, strict=True):
        shapes = [tuple(m.weight.shape) for m in ffn.modules() if isinstance(m, nn.Linear)]
        assert shapes == [(width, 32), (width, 32), (32, width)]
    text = model.config.get_text_config()
    assert [text.per_layer_config[i].intermediate_size for i in range(4)] == WIDTHS
