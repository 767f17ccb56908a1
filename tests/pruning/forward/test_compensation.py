"""Bias compensation: cut, saved, reloaded and priced with the biases that stand in for removed channels."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from torch import nn
from transformers import PreTrainedModel

from pruning.allocators.flap import allocate_flap
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.anatomy.decoder_view import decoder_view
from pruning.checkpoints.anatomy_reader import anatomy_of, read_anatomy
from pruning.checkpoints.loading import load_model, load_processor, load_pruned
from pruning.cutting.prune_checkpoint import prune_checkpoint, save_pruned
from pruning.cutting.surgery import apply_plan
from pruning.data.batches import make_batches
from pruning.data.conversations import Conversation
from pruning.errors import CheckpointError, PlanError
from pruning.measuring.statistics import StatisticsKind, measure_statistics
from pruning.planning.added_biases import bias_parameters
from pruning.planning.cost import achieved_costs
from pruning.planning.make_plan import make_plan
from pruning.planning.plan import BIAS, PlanRanking, PlanTarget, PruningPlan
from pruning.planning.ranking import Ranking
from tests.pruning.cut_models import WIDTHS, next_token_logits, weight_bytes
from tests.pruning.made_up import at_most, made_up_anatomy
from tests.tiny_models import BUILDERS, save_tiny_checkpoint


def compensating_ranking(anatomy: ModelAnatomy) -> Ranking:
    rng = np.random.default_rng(0)
    widths = [x.ffn_width for x in anatomy.layers]
    return Ranking.from_scores(anatomy, [rng.random(w) for w in widths], means=[rng.normal(size=w) for w in widths])


def plan_for(anatomy: ModelAnatomy, ranking: Ranking, widths: list[int]) -> PruningPlan:
    return make_plan(
        anatomy,
        anatomy.architecture(widths),
        model_id="tiny",
        target=PlanTarget(sparsity=0.3),
        method="test",
        ranking=PlanRanking(sha256=ranking.sha256),
        compensates=ranking.compensates,
    )


def hold_channels(model: PreTrainedModel, widths: list[int], ranking: Ranking) -> None:
    """The dense model with the channels that a plan removes held at their means, and nothing cut."""
    view = decoder_view(model)
    assert ranking.ffn_means is not None
    for layer, width in enumerate(widths):
        removed = torch.from_numpy(ranking.ffn[layer][width:]).long()
        means = torch.from_numpy(ranking.ffn_means[layer])[removed]

        def hold(_module: nn.Module, args: tuple[Any, ...], removed: Any = removed, means: Any = means) -> Any:
            return (args[0].index_copy(2, removed, means.expand(*args[0].shape[:2], -1)),)

        view.out_projection(layer).register_forward_pre_hook(hold)


@pytest.mark.parametrize("family", BUILDERS)
def test_a_family_is_compensated_saved_and_reloaded_exactly(family: str, tmp_path: Path) -> None:
    dense = save_tiny_checkpoint(tmp_path / "dense", family, shard="60KB")
    anatomy, model = read_anatomy(dense), load_model(dense)
    ranking = compensating_ranking(anatomy)
    plan = plan_for(anatomy, ranking, WIDTHS)

    held = deepcopy(model)
    hold_channels(held, WIDTHS, ranking)
    apply_plan(model, plan, ranking)
    torch.testing.assert_close(next_token_logits(model), next_token_logits(held), rtol=1e-4, atol=1e-5)
    own_bias = decoder_view(held).out_projection(2).bias is not None
    assert own_bias == (family in ("llava-llama-biases", "llava-phi", "phi"))
    biased = [decoder_view(model).out_projection(i).bias is not None for i in range(4)]
    assert biased == [True, True, own_bias, True]  # layer 2 stays dense

    plain = achieved_costs(anatomy, anatomy.architecture(WIDTHS)).parameters
    assert plan.achieved.parameters == plain + (0 if own_bias else 3 * 32)
    assert plan.achieved.parameters == sum(p.numel() for p in model.parameters())

    from_files = prune_checkpoint(dense, plan, ranking, tmp_path / "files")
    from_memory = save_pruned(model, plan, tmp_path / "memory")
    assert weight_bytes(from_files) == plan.achieved.disk_bytes
    first = load_pruned(from_files)
    again = save_pruned(first, plan, tmp_path / "again")
    expected = model.state_dict()
    for reloaded in (first, load_pruned(from_memory), load_pruned(again)):
        found = reloaded.state_dict()
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(tensor, found[name]), name
        assert torch.equal(next_token_logits(reloaded), next_token_logits(model))


def test_nothing_is_lost_when_removed_channels_are_constant(conversations: list[Conversation], tmp_path: Path) -> None:
    """From measured statistics to the cut model: channels that never change are FLAP's first to go, at no cost."""
    dense = save_tiny_checkpoint(tmp_path / "dense", "llava-llama-biases")
    model = load_model(dense)
    with torch.no_grad():
        for layer in model.get_decoder().layers:
            for linear in (layer.mlp.gate_proj, layer.mlp.up_proj):
                linear.weight[::3] = 0  # 16 of 48 channels
                nn.init.normal_(linear.bias, std=2.0)
            nn.init.normal_(layer.mlp.down_proj.bias)
    model.save_pretrained(tmp_path / "constant")
    load_processor(dense).save_pretrained(tmp_path / "constant")
    anatomy, model = read_anatomy(tmp_path / "constant"), load_model(tmp_path / "constant")
    batches = make_batches(conversations, load_processor(dense), batch_size=4)
    statistics = measure_statistics(StatisticsKind.ACTIVATIONS, model, batches)
    before = next_token_logits(model)

    ranking = allocate_flap(
        anatomy, statistics, at_most(anatomy, anatomy.ffn_parameters // 2, compensates=True)
    ).ranking
    assert ranking is not None
    assert all(set(order[32:]) == set(range(0, 48, 3)) for order in ranking.ffn)
    apply_plan(model, plan_for(anatomy, ranking, [32] * 4), ranking)
    torch.testing.assert_close(next_token_logits(model), before, rtol=1e-4, atol=1e-4)

    without = load_model(tmp_path / "constant")
    plain = Ranking(ranking.ffn, anatomy.fingerprint)
    apply_plan(without, plan_for(anatomy, plain, [32] * 4), plain)
    assert float((next_token_logits(without) - before).abs().max()) > 0.01


def test_the_bias_worked_by_hand(tmp_path: Path) -> None:
    model = load_model(save_tiny_checkpoint(tmp_path / "dense"))
    anatomy = anatomy_of(model)
    down = model.get_decoder().layers[0].mlp.down_proj
    with torch.no_grad():
        down.weight[:] = torch.arange(32.0)[:, None]  # row i is i everywhere
    scores = [np.arange(48.0, 0.0, -1.0)] * 4
    means = [np.where(np.arange(48) < 46, 100.0, np.where(np.arange(48) == 46, 2.0, -0.5))] * 4
    ranking = Ranking.from_scores(anatomy, scores, means=means)
    apply_plan(model, plan_for(anatomy, ranking, [46, 48, 48, 48]), ranking)
    assert torch.equal(down.bias, 1.5 * torch.arange(32.0))


def test_half_precision_checkpoints_keep_their_dtype(tmp_path: Path) -> None:
    dense = save_tiny_checkpoint(tmp_path / "dense")
    load_model(dense, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    anatomy = read_anatomy(tmp_path / "half")
    ranking = compensating_ranking(anatomy)
    plan = plan_for(anatomy, ranking, WIDTHS)
    out = prune_checkpoint(tmp_path / "half", plan, ranking, tmp_path / "out")
    assert weight_bytes(out) == plan.achieved.disk_bytes
    assert decoder_view(load_pruned(out, dtype="auto")).out_projection(0).bias.dtype == torch.bfloat16


@pytest.mark.parametrize("layer", [0, 3])
def test_a_bias_past_the_range_of_half_precision_is_refused(layer: int, tmp_path: Path) -> None:
    """Before a byte is written, and before anything of a model in memory is cut."""
    dense = save_tiny_checkpoint(tmp_path / "dense")
    load_model(dense, dtype=torch.float16).save_pretrained(tmp_path / "half")
    anatomy = read_anatomy(tmp_path / "half")
    scores, means = [np.arange(48.0, 0.0, -1.0)] * 4, [np.zeros(48)] * 4
    means[layer] = np.full(48, 1e8)
    ranking = Ranking.from_scores(anatomy, scores, means=means)
    plan = plan_for(anatomy, ranking, [40] * 4)
    seen: list[int] = []
    with pytest.raises(CheckpointError, match=f"bias of layer {layer} is not finite in float16.*bfloat16"):
        prune_checkpoint(
            tmp_path / "half", plan, ranking, tmp_path / "out", on_bytes=lambda done, _total: seen.append(done)
        )
    assert seen == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "half"]
    model = load_model(tmp_path / "half", dtype=torch.float16)
    with pytest.raises(CheckpointError, match=f"bias of layer {layer} is not finite"):
        apply_plan(model, plan, ranking)
    view = decoder_view(model)
    assert [view.ffn_width(x) for x in range(4)] == [48] * 4
    # The range of bfloat16 is that of float32.
    load_model(dense, dtype=torch.bfloat16).save_pretrained(tmp_path / "brain")
    anatomy = read_anatomy(tmp_path / "brain")
    ranking = Ranking.from_scores(anatomy, scores, means=means)
    prune_checkpoint(tmp_path / "brain", plan_for(anatomy, ranking, [40] * 4), ranking, tmp_path / "out")


def test_costs_count_the_biases_of_layers_that_are_cut() -> None:
    anatomy = made_up_anatomy([64, 64, 64], per_channel=30)  # D = 10
    assert bias_parameters(anatomy) == [10, 10, 10]
    cut, dense = anatomy.architecture([32, 64, 8]), Architecture()
    plain, biased = achieved_costs(anatomy, cut), achieved_costs(anatomy, cut, compensates=True)
    assert biased.parameters == plain.parameters + 20
    assert {s: biased.removed[s] for s in plain.removed} == {
        "ffn": (88 * 30 - 20) / (192 * 30),
        "decoder": (88 * 30 - 20) / (192 * 30 + 3000),
        "model": (88 * 30 - 20) / (192 * 30 + 8000),
    }
    positions = plain.workload.prompt_tokens + plain.workload.output_tokens - 1
    assert biased.flops == plain.flops + 2 * 20 * positions
    assert achieved_costs(anatomy, dense, compensates=True) == achieved_costs(anatomy, dense)


class TestTheDocuments:
    def test_a_plan_that_compensates_says_so(self, anatomy: ModelAnatomy) -> None:
        plan = plan_for(anatomy, compensating_ranking(anatomy), WIDTHS)
        assert json.loads(plan.to_json())["recovery"] == [{"kind": "bias"}]
        assert PruningPlan.from_json(plan.to_json()) == plan
        architecture = anatomy.architecture(WIDTHS)
        assert achieved_costs(anatomy, architecture, compensates=plan.compensates) == plan.achieved

    def test_a_ranking_without_means_has_the_bytes_it_always_had(self, anatomy: ModelAnatomy) -> None:
        orders = [np.arange(48, dtype=np.int32)[::-1].copy()] * 4
        expected = save(
            {f"layers.{i}.ffn": order for i, order in enumerate(orders)}, metadata={"fingerprint": anatomy.fingerprint}
        )
        ranking = Ranking(tuple(orders), anatomy.fingerprint)
        assert ranking.to_bytes() == expected
        assert Ranking.from_bytes(expected).ffn_means is None

    def test_a_ranking_with_means_round_trips(self, anatomy: ModelAnatomy) -> None:
        ranking = compensating_ranking(anatomy)
        again = Ranking.from_bytes(ranking.to_bytes())
        again.check(anatomy)
        assert again.sha256 == ranking.sha256
        assert again.ffn_means is not None
        assert ranking.ffn_means is not None
        for a, b in zip([*again.ffn, *again.ffn_means], [*ranking.ffn, *ranking.ffn_means], strict=True):
            assert a.dtype == b.dtype
            assert np.array_equal(a, b)
        site = Site(0, Sublayer.FFN)
        kept = ranking.kept_units(Architecture.of({site: Option(20)}))[site]
        assert sorted([*kept, *ranking.removed(0, 20)]) == list(range(48))
        assert set(ranking.removed(0, 20)) == set(ranking.ffn[0][20:])

    def test_means_that_are_not_whole_are_refused(self, anatomy: ModelAnatomy) -> None:
        ranking = compensating_ranking(anatomy)
        assert ranking.ffn_means is not None
        orders = {f"layers.{i}.ffn": order for i, order in enumerate(ranking.ffn)}
        means = {f"layers.{i}.ffn_mean": mean for i, mean in enumerate(ranking.ffn_means[:3])}
        with pytest.raises(CheckpointError, match="safetensors file of channel orders"):
            Ranking.from_bytes(save({**orders, **means}, metadata={"fingerprint": anatomy.fingerprint}))
        for bad in (np.full(48, np.nan, np.float32), np.zeros(47, np.float32)):
            with pytest.raises(CheckpointError, match="finite mean"):
                Ranking(ranking.ffn, anatomy.fingerprint, (*ranking.ffn_means[:3], bad)).check(anatomy)

    @pytest.mark.parametrize("with_means", [True, False])
    def test_a_plan_must_say_what_its_ranking_does(
        self, checkpoint: Path, anatomy: ModelAnatomy, tmp_path: Path, with_means: bool
    ) -> None:
        ranking = compensating_ranking(anatomy)
        if not with_means:
            ranking = Ranking(ranking.ffn, anatomy.fingerprint)
        plan = plan_for(anatomy, ranking, WIDTHS)
        lying = plan.model_copy(update={"recovery": () if plan.compensates else (BIAS,)})
        with pytest.raises(PlanError, match="compensates if, and only if"):
            apply_plan(load_model(checkpoint), lying, ranking)
        with pytest.raises(PlanError, match="compensates if, and only if"):
            prune_checkpoint(checkpoint, lying, ranking, tmp_path / "out")
        assert list(tmp_path.iterdir()) == []

    def test_a_model_without_its_biases_is_not_saved(
        self, checkpoint: Path, anatomy: ModelAnatomy, tmp_path: Path
    ) -> None:
        ranking = compensating_ranking(anatomy)
        plain = Ranking(ranking.ffn, anatomy.fingerprint)
        model = apply_plan(load_model(checkpoint), plan_for(anatomy, plain, WIDTHS), plain)
        with pytest.raises(CheckpointError, match="biases that its plan adds"):
            save_pruned(model, plan_for(anatomy, ranking, WIDTHS), tmp_path / "out")
        assert not (tmp_path / "out").exists()
