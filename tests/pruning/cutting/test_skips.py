"""Every supported family with sub-layers that are skipped: computed, cached, counted, recorded, saved, trained.

A skipped sub-layer adds nothing, as does one whose output projection is zeroed with its bias. That holds where a norm
follows the projection too (Gemma 2 and 3): an RMS norm without a bias makes zeros of zeros. So every skipping model has
a dense twin that is cut nowhere and computes the same.
"""

import json
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, DynamicCache, PreTrainedModel, StaticCache
from transformers.cache_utils import DummyLayer

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.anatomy.decoder_view import decoder_view
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.headers import stored_tensors
from pruning.checkpoints.loading import load_model, load_pruned
from pruning.cutting.prune_checkpoint import prune_checkpoint, save_pruned
from pruning.cutting.surgery import apply_plan
from pruning.errors import CheckpointError, PlanError, UnsupportedModelError
from pruning.planning.cost import achieved_costs
from pruning.planning.make_plan import make_plan
from pruning.planning.plan import PlanRanking, PlanTarget, PruningPlan
from pruning.planning.ranking import Ranking
from pruning.planning.workload import Workload
from tests.pruning.cut_models import (
    inputs_of,
    logits_of,
    random_ranking,
    silence,
    text_inputs,
    weight_bytes,
    with_tokens,
)
from tests.pruning.registered_loading import loaded_by_transformers
from tests.pruning.reloading import digest, seen
from tests.tiny_models import BUILDERS, save_tiny_checkpoint

NEW_TOKENS = 6
NO_STATIC_CACHE = ("paligemma2",)
"""transformers 5.23 fails to generate with these and a static cache, dense or pruned."""


def skipping(anatomy: ModelAnatomy) -> Architecture:
    """Attention is gone from the first layer, which caches are asked about first; the second is gone; the third has no
    FFN, and the last is cut."""
    groups = max(1, anatomy.layers[2].num_kv_groups // 2)
    kept = anatomy.architecture([16, 0, 0, 40], [0, 0, groups, anatomy.layers[3].num_kv_groups])
    assert set(kept.options.values()) >= {Option(0), Option(16)}
    return kept


def plan_of(anatomy: ModelAnatomy, architecture: Architecture, ranking: Ranking, **changed: Any) -> PruningPlan:
    return make_plan(
        anatomy,
        architecture,
        model_id="tiny",
        target=PlanTarget(sparsity=0.3),
        method="test",
        ranking=PlanRanking(sha256=ranking.sha256),
        **changed,
    )


@dataclass(eq=False)
class Skipping:
    """A family's dense checkpoint, and the folder that a plan that skips makes of it."""

    dense: Path
    anatomy: ModelAnatomy
    ranking: Ranking
    plan: PruningPlan
    out: Path

    @property
    def architecture(self) -> Architecture:
        return self.plan.architecture(self.anatomy)

    @cached_property
    def dense_model(self) -> PreTrainedModel:
        """Read-only, as `model` and `twin`."""
        return load_model(self.dense)

    @cached_property
    def model(self) -> PreTrainedModel:
        return load_pruned(self.out)

    @cached_property
    def twin(self) -> PreTrainedModel:
        """Dense, with the output projections zeroed of what is skipped."""
        twin = load_model(self.dense)
        silence(twin, self.architecture, self.ranking)
        return twin

    @cached_property
    def cut_in_memory(self) -> PreTrainedModel:
        return apply_plan(deepcopy(self.dense_model), self.plan, self.ranking)


class Workshop:
    """Cuts each family once for all tests."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.skipping = cache(self._skipping)

    def _skipping(self, family: str) -> Skipping:
        folder = self._folder / family
        dense = save_tiny_checkpoint(folder / "dense", family, shard="60KB")
        anatomy = read_anatomy(dense)
        ranking = random_ranking(anatomy)
        plan = plan_of(anatomy, skipping(anatomy), ranking)
        return Skipping(dense, anatomy, ranking, plan, prune_checkpoint(dense, plan, ranking, folder / "out"))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("skips"))


def greedy(model: PreTrainedModel, inputs: dict[str, torch.Tensor], **how: Any) -> list[int]:
    made = model.generate(**inputs, do_sample=False, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS, **how)
    found: list[int] = made[0, inputs["input_ids"].shape[1] :].tolist()
    assert len(found) == NEW_TOKENS
    return found


def greedy_without_cache(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> list[int]:
    """By whole passes alone: no token is ever taken from what was computed before."""
    found: list[int] = []
    for _ in range(NEW_TOKENS):
        shown = with_tokens(inputs, torch.tensor([found])) if found else inputs
        logits = logits_of(model, shown)[0, -1].clone()
        logits[model.generation_config.eos_token_id or 2] = -torch.inf  # as `min_new_tokens` does
        found.append(int(logits.argmax()))
    return found


@pytest.mark.parametrize("family", BUILDERS)
def test_a_model_that_skips_equals_its_silenced_dense_twin(family: str, workshop: Workshop) -> None:
    made = workshop.skipping(family)
    from_files, twin, in_memory = made.model, made.twin, made.cut_in_memory
    assert digest(dict(from_files.named_parameters())) == digest(dict(in_memory.named_parameters()))
    for inputs in inputs_of(family).values():
        expected = logits_of(twin, inputs)
        torch.testing.assert_close(logits_of(from_files, inputs), expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(logits_of(in_memory, inputs), logits_of(from_files, inputs))
        assert not torch.allclose(expected, logits_of(made.dense_model, inputs), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", BUILDERS)
def test_generating_with_any_cache_gives_the_tokens_of_whole_passes(family: str, workshop: Workshop) -> None:
    made = workshop.skipping(family)
    model, twin = made.model, made.twin
    for inputs in inputs_of(family).values():
        expected = greedy_without_cache(model, inputs)
        assert greedy(model, inputs) == expected
        if family in NO_STATIC_CACHE:
            with pytest.raises(AttributeError, match="'dict' object has no attribute 'ndim'"):
                greedy(twin, inputs, cache_implementation="static")
        else:
            assert greedy(model, inputs, cache_implementation="static") == expected
        assert greedy(model, inputs, use_cache=False) == expected
        assert greedy(twin, inputs) == expected
        if not any(layer.window for layer in made.anatomy.layers):  # without a config, a cache knows of no window
            assert greedy(model, inputs, past_key_values=DynamicCache()) == expected


@pytest.mark.parametrize("family", BUILDERS)
def test_costs_are_those_of_what_is_left(family: str, workshop: Workshop) -> None:
    made = workshop.skipping(family)
    model, said = made.model, made.plan.achieved
    assert said.parameters == sum(p.numel() for p in model.parameters())
    assert said.disk_bytes == weight_bytes(made.out)
    dense = achieved_costs(made.anatomy, Architecture())
    view, layer = decoder_view(model), made.anatomy.layers[1]
    left = {name for name, _ in view.layers[1].named_parameters()}  # of a layer that is gone: a norm of both halves
    assert left == ({"input_layernorm.weight", "input_layernorm.bias"} if family.endswith("phi") else set())
    assert dense.parameters - said.parameters > layer.parameters - 2 * made.anatomy.hidden_size
    workload = Workload(batch=2, prompt_tokens=9, output_tokens=3)
    cached = achieved_costs(made.anatomy, made.architecture, workload).kv_cache_bytes
    kv_cache = StaticCache(config=model.config, max_cache_len=12)
    with torch.inference_mode():
        model(**text_inputs(9, rows=2), past_key_values=kv_cache, use_cache=True)
    assert [isinstance(layer, DummyLayer) for layer in kv_cache.layers] == [True, True, False, False]
    held = [x for layer in kv_cache.layers for x in (layer.keys, layer.values) if x is not None]
    assert cached == sum(tensor.numel() * tensor.element_size() for tensor in held)


@pytest.mark.parametrize("family", BUILDERS)
def test_it_is_recorded_as_transformers_records_it_and_saved_again(
    family: str, workshop: Workshop, tmp_path: Path
) -> None:
    made = workshop.skipping(family)
    text = AutoConfig.from_pretrained(made.out).get_text_config(decoder=True)
    skipped = [text.per_layer_config[layer].skip for layer in range(4)]
    assert skipped == [["attention"], ["attention", "mlp"], ["mlp"], []]
    names = {tensor.partition("layers.1.")[2] for tensor in stored_tensors(made.out) if "vision" not in tensor}
    assert not {name for name in names if name.startswith(("self_attn", "mlp"))}
    model = made.model
    model.save_pretrained(tmp_path / "saved")
    again = load_pruned(tmp_path / "saved")
    assert digest(dict(again.named_parameters())) == digest(dict(model.named_parameters()))
    assert torch.equal(logits_of(again, text_inputs()), logits_of(model, text_inputs()))
    save_pruned(model, made.plan, tmp_path / "pruned")
    assert (tmp_path / "pruned" / "config.json").read_text() == (tmp_path / "saved" / "config.json").read_text()


@pytest.mark.parametrize("family", BUILDERS)
def test_registered_transformers_loads_it_alone(family: str, workshop: Workshop, registered: None) -> None:
    made = workshop.skipping(family)
    model = loaded_by_transformers(made.out, family)
    expected = seen(made.cut_in_memory, family)
    assert seen(model, family) == expected
    inputs = text_inputs()
    assert greedy(model, inputs) == greedy_without_cache(model, inputs)


@pytest.mark.parametrize("family", ["llama", "phi", "gemma2", "qwen3-vl"])
def test_it_can_be_fine_tuned(family: str, workshop: Workshop, tmp_path: Path) -> None:
    model = load_pruned(workshop.skipping(family).out).train()
    model.activation_checkpointing_enable()
    inputs = text_inputs(rows=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model(**inputs, labels=inputs["input_ids"]).loss.item()
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    optimizer.step()
    trained = model.eval()
    after = trained(**inputs, labels=inputs["input_ids"]).loss.item()
    assert after < before
    trained.save_pretrained(tmp_path / "tuned")
    again = load_pruned(tmp_path / "tuned")
    assert torch.equal(logits_of(again, inputs), logits_of(trained, inputs))


def test_beams_are_reordered_and_a_second_turn_goes_on_with_the_cache(workshop: Workshop) -> None:
    made = workshop.skipping("llama")
    model, twin, inputs = made.model, made.twin, text_inputs()
    assert greedy(model, inputs, num_beams=3) == greedy(twin, inputs, num_beams=3)
    kv_cache = DynamicCache(config=model.config)
    first = model.generate(**inputs, do_sample=False, max_new_tokens=4, past_key_values=kv_cache)
    assert kv_cache.get_seq_length() == first.shape[1] - 1
    longer = {"input_ids": torch.cat([first, inputs["input_ids"]], dim=1)}
    longer["attention_mask"] = torch.ones_like(longer["input_ids"])
    assert greedy(model, longer, past_key_values=kv_cache) == greedy_without_cache(model, longer)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_prefill_in_chunks_and_a_compiled_pass(family: str, workshop: Workshop) -> None:
    """A cache that is set up before it is used, and one that changes while the pass is traced, without graph breaks."""
    model, inputs = load_pruned(workshop.skipping(family).out), text_inputs()
    expected = greedy_without_cache(model, inputs)
    assert greedy(model, inputs, cache_implementation="static", prefill_chunk_size=5) == expected
    compiled: Any = torch.compile(model.forward, backend="eager", fullgraph=True)
    kv_cache, token, found = StaticCache(config=model.config, max_cache_len=24), inputs["input_ids"], list[int]()
    with torch.inference_mode():
        for _ in range(NEW_TOKENS):
            logits = compiled(input_ids=token, past_key_values=kv_cache, use_cache=True).logits[:, -1].clone()
            logits[:, 2] = -torch.inf
            token = logits.argmax(dim=-1, keepdim=True)
            found.append(token.item())
    assert found == expected


def test_padded_rows_are_answered_as_alone(workshop: Workshop) -> None:
    model, inputs = workshop.skipping("mistral").model, text_inputs(rows=2)
    padded = {name: tensor.clone() for name, tensor in inputs.items()}
    padded["input_ids"][0, :5], padded["attention_mask"][0, :5] = 0, 0
    both = model.generate(**padded, do_sample=False, min_new_tokens=4, max_new_tokens=4)
    for row, start in ((0, 5), (1, 0)):
        alone = {name: tensor[row : row + 1, start:] for name, tensor in inputs.items()}
        found = model.generate(**alone, do_sample=False, min_new_tokens=4, max_new_tokens=4)
        assert both[row, -4:].tolist() == found[0, -4:].tolist()


def test_compensation_adds_no_bias_to_what_is_skipped(checkpoint: Path, tmp_path: Path) -> None:
    anatomy = read_anatomy(checkpoint)
    means, scores = [np.ones(48)] * 4, [np.arange(48.0)] * 4
    ranking = Ranking.from_scores(anatomy, scores, means=means)
    # This ranking orders no KV groups: all of them may go at once, since none is chosen.
    architecture = anatomy.architecture([48, 0, 16, 48], [2, 2, 0, 2])
    plan = plan_of(anatomy, architecture, ranking, compensates=True)
    out = prune_checkpoint(checkpoint, plan, ranking, tmp_path / "out")
    assert [name for name in stored_tensors(out) if name.endswith("down_proj.bias")] == [
        "language_model.model.layers.2.mlp.down_proj.bias"
    ]
    model = apply_plan(load_model(checkpoint), plan, ranking)
    assert digest(dict(model.named_parameters())) == digest(dict(load_pruned(out).named_parameters()))
    save_pruned(model, plan, tmp_path / "memory")
    assert weight_bytes(out) == plan.achieved.disk_bytes


@pytest.mark.parametrize("ffn_widths", [[48] * 4, [0] * 4])
def test_a_model_without_any_attention_is_refused(checkpoint: Path, tmp_path: Path, ffn_widths: list[int]) -> None:
    anatomy = read_anatomy(checkpoint)
    ranking = random_ranking(anatomy)
    plan = plan_of(anatomy, anatomy.architecture(ffn_widths, [0] * 4), ranking)
    with pytest.raises(PlanError, match=r"attention of one layer at least.*all 4 layers skip it"):
        prune_checkpoint(checkpoint, plan, ranking, tmp_path / "out")
    model = load_model(checkpoint)
    with pytest.raises(PlanError, match="attention of one layer at least"):
        apply_plan(model, plan, ranking)
    assert list(tmp_path.iterdir()) == []
    assert all(isinstance(x, nn.Linear) for x in [decoder_view(model).attention_out(i) for i in range(4)])


def test_all_ffns_may_go(checkpoint: Path, tmp_path: Path) -> None:
    anatomy = read_anatomy(checkpoint)
    ranking = random_ranking(anatomy)
    plan = plan_of(anatomy, anatomy.architecture([0] * 4, [0, 0, 0, 2]), ranking)
    model = load_pruned(prune_checkpoint(checkpoint, plan, ranking, tmp_path / "out"))
    view = decoder_view(model)
    assert [view.ffn_width(layer) for layer in range(4)] == [0] * 4
    assert [view.is_skipped(Site(layer, Sublayer.ATTENTION)) for layer in range(4)] == [True, True, True, False]
    assert greedy(model, text_inputs()) == greedy_without_cache(model, text_inputs())


def test_a_config_that_skips_something_else_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    made = workshop.skipping("llama")
    document = json.loads((made.out / "config.json").read_text())
    document["per_layer_config"]["1"]["skip"] = ["attention", "norm"]
    (tmp_path / "config.json").write_text(json.dumps(document))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UnsupportedModelError, match=r"skip attention and mlp.*skip: norm"):
        load_pruned(tmp_path)


def test_files_that_hold_what_their_config_skips_do_not_load(workshop: Workshop, tmp_path: Path) -> None:
    made = workshop.skipping("llama")
    means = tuple(np.ones(48, dtype=np.float32) for _ in range(4))
    ranking = replace(made.ranking, ffn_means=means)
    other = plan_of(made.anatomy, made.anatomy.architecture([16, 8, 0, 40], [0, 0, 1, 2]), ranking, compensates=True)
    out = prune_checkpoint(made.dense, other, ranking, tmp_path / "out")
    assert len(load_pruned(out).state_dict()) > len(load_pruned(made.out).state_dict())
    (out / "config.json").write_bytes((made.out / "config.json").read_bytes())  # which skips the FFN of layer 1
    with pytest.raises(CheckpointError, match=r"5 unexpected, first model\.layers\.1\.mlp\.down_proj\.bias"):
        load_pruned(out)
