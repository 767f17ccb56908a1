"""KV groups and skipped sub-layers in the evaluator: the numbers of real cuts and of zeroed output projections."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from pruning.anatomy.architecture import DENSE, Architecture, Option, Site, Sublayer
from pruning.anatomy.decoder_view import decoder_view
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.loading import load_model
from pruning.cutting.surgery import cut_model
from pruning.data.conversations import Conversation
from pruning.measuring.evaluation import ConfigurationEvaluator, evaluate_model
from pruning.planning.ranking import Ranking
from tests.pruning.cut_models import WIDTHS, kept_groups, random_ranking, silence
from tests.pruning.forward.test_compensation import compensating_ranking
from tests.pruning.measuring.test_evaluation_families import (
    Lively,
    assert_equal,
    batches_for,
    lively,
    save_lively_model,
)
from tests.tiny_models import BUILDERS

__all__ = ["lively"]

ATTENTION, FFN = Sublayer.ATTENTION, Sublayer.FFN

SKIPS = Architecture.of(
    {
        Site(0, ATTENTION): Option(0),  # the layer is gone
        Site(0, FFN): Option(0),
        Site(1, ATTENTION): Option(0),
        Site(1, FFN): Option(8),
        Site(2, FFN): Option(0),
    }
)


def with_fewer_groups(architecture: Architecture, groups: int) -> Architecture:
    """One group in layers 2 and 3, where there are more."""
    fewer = {} if groups == 1 else {Site(layer, ATTENTION): Option(1) for layer in (2, 3)}
    return Architecture.of(architecture.options | fewer)


@torch.no_grad()
def zero(model: PreTrainedModel, architecture: Architecture, ranking: Ranking) -> None:
    """As `silence`; the output projections of what is skipped have no bias left either."""
    silence(model, architecture, ranking)
    view = decoder_view(model)
    for (layer, sublayer), option in architecture.items:
        out = view.attention_out(layer) if sublayer is ATTENTION else view.out_projection(layer)
        if option.units == 0 and out.bias is not None:
            out.bias.zero_()


@pytest.mark.parametrize("family", BUILDERS)
def test_groups_equal_cuts_and_skips_equal_zeroed_outputs(family: str, lively: Lively) -> None:
    anatomy, batches = lively.anatomy(family), lively.batches(family)
    ranking, groups = random_ranking(anatomy), anatomy.layers[0].num_kv_groups
    evaluator = ConfigurationEvaluator(lively.model(family), batches, ranking)
    cut = anatomy.architecture(WIDTHS, kept_groups(anatomy))
    skips = with_fewer_groups(SKIPS, groups)
    # What comes first leaves prefixes behind: of other architectures, and of the same.
    of_cut, of_skips, *_, again = evaluator([cut, skips, SKIPS, DENSE, cut])

    model = lively.model(family)
    cut_model(model, cut, ranking)
    assert_equal(of_cut, evaluate_model(model, batches, lively.dense(family)))
    twin = lively.model(family)
    zero(twin, skips, ranking)
    assert_equal(of_skips, evaluate_model(twin, batches, lively.dense(family)))
    assert again == of_cut
    assert evaluator([DENSE])[0].kl == 0.0


@pytest.mark.parametrize("family", ["llava-llama-biases", "phi", "phi3", "gemma3", "qwen2.5-vl"])
def test_a_layer_at_a_time_gives_the_same_numbers(
    family: str, conversations: list[Conversation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    half = save_lively_model(tmp_path / "half", family, torch.bfloat16)
    anatomy, batches = read_anatomy(half), batches_for(family, conversations)
    skips = with_fewer_groups(SKIPS, anatomy.layers[0].num_kv_groups)
    wanted = [skips, SKIPS, anatomy.architecture(WIDTHS, kept_groups(anatomy)), skips]
    wide, narrow = (
        ConfigurationEvaluator(load_model(half, dtype=dtype), batches, random_ranking(anatomy))(wanted)
        for dtype in (torch.float32, torch.bfloat16)
    )
    for found, expected in zip(narrow, wide, strict=True):
        assert found.kl == pytest.approx(expected.kl, rel=1e-5)


def test_what_is_skipped_is_not_run(conversations: list[Conversation], tmp_path: Path) -> None:
    folder = save_lively_model(tmp_path, "llava-llama")
    model, ranking = load_model(folder), random_ranking(read_anatomy(folder))
    evaluator = ConfigurationEvaluator(model, batches_for("llava-llama", conversations), ranking, cache_bytes=0)
    run: list[str] = []
    for index, layer in enumerate(decoder_view(model).layers):
        for name, module in layer.named_modules():
            if not list(module.children()):
                forward = module.forward

                def noted(*args: Any, _name: str = f"{index}.{name}", _forward: Any = forward, **kwargs: Any) -> Any:
                    run.append(_name)
                    return _forward(*args, **kwargs)

                monkey: Any = module
                monkey.forward = noted
    evaluator([SKIPS])
    attention = ("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    ffn = ("post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    expected = {f"1.{x}" for x in ffn} | {f"2.{x}" for x in attention} | {f"3.{x}" for x in (*attention, *ffn)}
    assert {name for name in run if "act_fn" not in name} == expected


def test_an_ffn_that_is_skipped_gets_no_bias(conversations: list[Conversation], tmp_path: Path) -> None:
    folder = save_lively_model(tmp_path, "llama")
    anatomy, batches = read_anatomy(folder), batches_for("llama", conversations)
    ranking = compensating_ranking(anatomy)
    architecture = Architecture.of({Site(1, FFN): Option(0), Site(2, FFN): Option(8)})
    (found,) = ConfigurationEvaluator(load_model(folder), batches, ranking)([architecture])
    model = load_model(folder)
    cut_model(model, Architecture.of({Site(2, FFN): Option(8)}), ranking)
    zero(model, Architecture.of({Site(1, FFN): Option(0)}), random_ranking(anatomy))
    assert_equal(found, evaluate_model(model, batches, load_model(folder)))


def test_what_is_measured_of_folds_adds_up(conversations: list[Conversation], tmp_path: Path) -> None:
    folder = save_lively_model(tmp_path, "phi3")
    batches, ranking = batches_for("phi3", conversations, batch_size=3), random_ranking(read_anatomy(folder))
    folds = [index % 2 for index in range(len(conversations))]
    (metrics,) = ConfigurationEvaluator(load_model(folder), batches, ranking, folds=folds)([SKIPS])
    assert metrics.folds is not None
    assert sum(fold.kl * fold.num_tokens for fold in metrics.folds) == pytest.approx(metrics.kl * metrics.num_tokens)
    (without,) = ConfigurationEvaluator(load_model(folder), batches, ranking)([SKIPS])
    assert replace(metrics, folds=None) == without
    assert metrics.folds[0].kl != metrics.folds[1].kl


def test_an_interrupted_evaluation_leaves_a_dense_model(
    conversations: list[Conversation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_lively_model(tmp_path, "phi3")
    model, ranking = load_model(folder), random_ranking(read_anatomy(folder))
    evaluator = ConfigurationEvaluator(model, batches_for("phi3", conversations), ranking)
    architecture = with_fewer_groups(SKIPS, 2)
    (expected,) = evaluator([architecture])
    layer = type(decoder_view(model).layers[3])
    forward = layer.forward

    def fail(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(layer, "forward", fail)
    with pytest.raises(KeyboardInterrupt):
        evaluator([architecture])
    monkeypatch.setattr(layer, "forward", forward)
    attention: Any = decoder_view(model).layers[3].get_submodule("self_attn")
    assert (attention.num_key_value_heads, attention.qkv_proj.weight.shape[0]) == (2, (4 + 2 * 2) * 8)
    assert evaluator([DENSE])[0].kl == 0.0
    assert evaluator([architecture]) == [expected]
