"""Every supported family: cut, compared with its zeroed dense twin, saved, reloaded, generated with."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, StaticCache

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.anatomy.decoder_view import decoder_view
from pruning.anatomy.families import FAMILIES
from pruning.checkpoints.anatomy_reader import anatomy_of, read_anatomy
from pruning.checkpoints.loading import load_model, load_pruned
from pruning.cutting.prune_checkpoint import prune_checkpoint, save_pruned
from pruning.cutting.surgery import apply_plan
from pruning.planning.cost import achieved_costs
from pruning.planning.plan import PruningPlan
from pruning.planning.ranking import Ranking
from pruning.planning.workload import Workload
from tests.pruning.cut_models import (
    WIDTHS,
    inputs_of,
    kept_groups,
    logits_of,
    plan_for,
    random_ranking,
    silence,
    text_inputs,
    weight_bytes,
)
from tests.pruning.registered_loading import loaded_by_transformers
from tests.pruning.reloading import seen
from tests.tiny_models import BUILDERS, save_tiny_checkpoint


@dataclass(frozen=True)
class Cut:
    """A family's model, cut in memory, and the folders it was saved to: from files, and from memory."""

    dense: Path
    dense_model: PreTrainedModel
    anatomy: ModelAnatomy
    ranking: Ranking
    plan: PruningPlan
    model: PreTrainedModel
    from_files: Path
    from_memory: Path


class Workshop:
    """Cuts each family once for all tests, in both ways."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.cut = cache(self._cut)
        self.reloaded = cache(self._reloaded)

    def _cut(self, family: str) -> Cut:
        folder = self._folder / family
        dense = save_tiny_checkpoint(folder / "dense", family, shard="60KB")
        anatomy = read_anatomy(dense)
        ranking = random_ranking(anatomy)
        plan = plan_for(anatomy, ranking, WIDTHS, kept_groups(anatomy))
        dense_model = load_model(dense)
        model = apply_plan(deepcopy(dense_model), plan, ranking)
        from_files = prune_checkpoint(dense, plan, ranking, folder / "files")
        from_memory = save_pruned(model, plan, folder / "memory")
        return Cut(dense, dense_model, anatomy, ranking, plan, model, from_files, from_memory)

    def _reloaded(self) -> dict[str, Any]:
        """What one new process finds in every folder that there is."""
        arguments = [
            f"{path.parent.name}={path}" for way in ("files", "memory") for path in self._folder.glob(f"*/{way}")
        ]
        done = subprocess.run(
            [sys.executable, "-m", "tests.pruning.reloading", *arguments],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"},
        )
        sys.stderr.write(done.stderr)  # shown with a test that fails
        reports: dict[str, Any] = json.loads(done.stdout)
        return reports


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("families"))


@pytest.mark.parametrize("family", BUILDERS)
def test_a_cut_model_equals_its_silenced_dense_twin(family: str, workshop: Workshop) -> None:
    cut = workshop.cut(family)
    dense, twin = cut.dense_model, deepcopy(cut.dense_model)
    silence(twin, cut.plan.architecture(cut.anatomy), cut.ranking)
    for inputs in inputs_of(family).values():
        expected = logits_of(twin, inputs)
        torch.testing.assert_close(logits_of(cut.model, inputs), expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(expected, logits_of(dense, inputs), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", BUILDERS)
def test_what_is_cut_has_the_plans_shapes(family: str, workshop: Workshop) -> None:
    cut = workshop.cut(family)
    view, architecture = decoder_view(cut.model), cut.plan.architecture(cut.anatomy)
    widths, kv_groups = cut.anatomy.ffn_widths(architecture), cut.anatomy.kv_groups(architecture)
    for layer, width, groups in zip(cut.anatomy.layers, widths, kv_groups, strict=True):
        ffn = [tuple(view.projection(layer.index, name).weight.shape) for name in view.family.ffn_in]
        rows = sum(extent for extent, _ in ffn)
        assert rows == width * (1 if family.endswith("phi") else 2)
        assert view.out_projection(layer.index).weight.shape == (32, width)
        attention = [view.projection(layer.index, name).weight for name in view.family.attention_in]
        assert sum(len(weight) for weight in attention) == groups * (layer.heads_per_group + 2) * layer.head_dim
        assert view.attention_out(layer.index).weight.shape[1] == groups * layer.heads_per_group * layer.head_dim
    assert list(widths) == WIDTHS
    if cut.anatomy.layers[0].num_kv_groups > 1:
        assert len({*kv_groups}) > 1
        assert min(kv_groups) >= 1


@pytest.mark.parametrize("family", BUILDERS)
def test_registered_transformers_loads_and_saves_it_alone(
    family: str, workshop: Workshop, registered: None, tmp_path: Path
) -> None:
    cut = workshop.cut(family)
    expected = seen(cut.model, family)
    model = loaded_by_transformers(cut.from_files, family)
    assert type(model) is type(cut.model)
    assert seen(model, family) == expected
    model.save_pretrained(tmp_path)
    assert seen(loaded_by_transformers(tmp_path, family), family) == expected
    assert seen(load_pruned(tmp_path), family) == expected


@pytest.mark.parametrize("family", BUILDERS)
def test_costs_are_those_of_the_cut_model(family: str, workshop: Workshop) -> None:
    cut = workshop.cut(family)
    assert cut.plan.achieved.parameters == sum(p.numel() for p in cut.model.parameters())
    assert cut.plan.achieved.disk_bytes == weight_bytes(cut.from_files)
    workload = Workload(batch=2, prompt_tokens=9, output_tokens=3)
    said = achieved_costs(cut.anatomy, cut.plan.architecture(cut.anatomy), workload).kv_cache_bytes
    kv_cache = StaticCache(config=cut.model.config, max_cache_len=12)
    with torch.inference_mode():
        cut.model(**text_inputs(9, rows=2), past_key_values=kv_cache, use_cache=True)
    held = [tensor for layer in kv_cache.layers for tensor in (layer.keys, layer.values)]
    assert said == sum(tensor.numel() * tensor.element_size() for tensor in held)


@pytest.mark.parametrize("way", ["files", "memory"])
@pytest.mark.parametrize("family", BUILDERS)
def test_a_new_process_reloads_it_bit_for_bit_and_generates(family: str, way: str, workshop: Workshop) -> None:
    for other in BUILDERS:  # so that one process serves all
        with suppress(Exception):  # its own tests say so
            workshop.cut(other)
    cut = workshop.cut(family)
    folder = cut.from_files if way == "files" else cut.from_memory
    report = workshop.reloaded()[f"{family}={folder}"]
    assert "error" not in report, report["error"]
    assert report["class"] == type(cut.model).__name__
    architecture = cut.plan.architecture(cut.anatomy)
    widths, groups = cut.anatomy.ffn_widths(architecture), cut.anatomy.kv_groups(architecture)
    heads = [n * x.heads_per_group for n, x in zip(groups, cut.anatomy.layers, strict=True)]
    assert report["recorded"] == [list(widths), list(groups), heads]
    assert report["seen"] == seen(cut.model, family)
    assert max(report["cache_error"].values()) < 1e-4, report["cache_error"]


@pytest.mark.parametrize("family", BUILDERS)
def test_anatomy_is_the_same_from_files_and_from_memory(family: str, workshop: Workshop) -> None:
    from_files, model = workshop.cut(family).anatomy, workshop.cut(family).dense_model
    from_memory = anatomy_of(model)
    assert from_files.fingerprint == from_memory.fingerprint
    assert from_files.layers == from_memory.layers
    parameters = sum(p.numel() for p in model.parameters())
    assert from_files.total_parameters == from_memory.total_parameters == parameters
    decoder = sum(p.numel() for layer in decoder_view(model).layers for p in layer.parameters())
    assert from_files.decoder_parameters == decoder
    assert ModelAnatomy.from_dict(from_files.to_dict()) == from_files


def test_every_row_of_the_table_is_tried(workshop: Workshop) -> None:
    assert {workshop.cut(family).anatomy.text_model_type for family in BUILDERS} == set(FAMILIES)


@pytest.mark.parametrize("flat", ["qwen2-vl", "qwen2.5-vl"])
def test_a_flat_config_is_pruned_and_reloaded(flat: str, tmp_path: Path) -> None:
    """Qwen2-VL is published with the language model's fields at the top of config.json."""
    dense = save_tiny_checkpoint(tmp_path / "dense", flat)
    document = json.loads((dense / "config.json").read_text())
    document |= {k: v for k, v in document.pop("text_config").items() if k != "model_type"}
    (dense / "config.json").write_text(json.dumps(document))
    anatomy = read_anatomy(dense)
    ranking = random_ranking(anatomy)
    plan = plan_for(anatomy, ranking, WIDTHS, kept_groups(anatomy))
    model = load_pruned(prune_checkpoint(dense, plan, ranking, tmp_path / "out"))
    view = decoder_view(model)
    assert [view.out_projection(i).in_features for i in range(4)] == WIDTHS
    assert [view.attention_out(i).in_features for i in range(4)] == [16 * groups for groups in kept_groups(anatomy)]
    apply_plan(load_model(dense), plan, ranking)


def test_transformers_by_itself_refuses_the_folder(workshop: Workshop) -> None:
    cut = workshop.cut("llava-llama")
    with pytest.raises(RuntimeError, match="mismatched_sizes"):
        type(cut.model).from_pretrained(cut.from_files)


def test_fingerprints_tell_shapes_apart_but_not_weights(tmp_path: Path) -> None:
    first = read_anatomy(save_tiny_checkpoint(tmp_path / "a", seed=0)).fingerprint
    assert read_anatomy(save_tiny_checkpoint(tmp_path / "b", seed=1)).fingerprint == first
    assert read_anatomy(save_tiny_checkpoint(tmp_path / "c", "llava-llama-biases")).fingerprint != first


def test_a_layer_that_stays_dense_is_not_in_the_config(checkpoint: Path, tmp_path: Path) -> None:
    anatomy = read_anatomy(checkpoint)
    ranking = random_ranking(anatomy)
    plan = plan_for(anatomy, ranking, [48, 8, 48, 48], [2, 2, 1, 2])
    attention, ffn = (Site(2, Sublayer.ATTENTION), Option(1)), (Site(1, Sublayer.FFN), Option(8))
    assert plan.architecture(anatomy) == Architecture((ffn, attention))
    out = prune_checkpoint(checkpoint, plan, ranking, tmp_path / "out")
    text = json.loads((out / "config.json").read_text())["text_config"]
    assert text["per_layer_config"] == {
        "1": {"intermediate_size": 8},
        "2": {"num_attention_heads": 2, "num_key_value_heads": 1},
    }
    assert text["head_dim"] == 8


def test_the_cut_layers_have_the_plans_shapes(checkpoint: Path) -> None:
    anatomy, model = read_anatomy(checkpoint), load_model(checkpoint)
    ranking = random_ranking(anatomy)
    apply_plan(model, plan_for(anatomy, ranking, WIDTHS), ranking)
    for layer, width in zip(decoder_view(model).layers, WIDTHS, strict=True):
        shapes = [tuple(m.weight.shape) for m in layer.get_submodule("mlp").modules() if isinstance(m, nn.Linear)]
        assert shapes == [(width, 32), (width, 32), (32, width)]
    text = model.config.get_text_config()
    assert [text.per_layer_config[i].intermediate_size for i in range(4)] == WIDTHS
