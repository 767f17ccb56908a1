"""Plans with bits: what is scored, what is priced, what is written, and what transformers reads back are the same."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.headers import stored_tensors
from pruning.checkpoints.loading import load_model, load_processor, load_pruned
from pruning.cutting.check_pruned import check_pruned
from pruning.cutting.inspection import InspectedLayer, inspect_checkpoint
from pruning.cutting.prune_checkpoint import prune_checkpoint
from pruning.cutting.reconstruct_checkpoint import Reconstruction
from pruning.cutting.reconstruction import SolvedSite
from pruning.cutting.surgery import apply_plan
from pruning.data.batches import BatchStream, make_batches
from pruning.data.conversations import Conversation, calibration_id
from pruning.errors import CheckpointError, InputError, PlanError
from pruning.measuring.evaluation import ConfigurationEvaluator, evaluate_model
from pruning.measuring.rounded_weights import RoundedWeights
from pruning.planning import prices
from pruning.planning.budget import header_bytes_bound
from pruning.planning.make_plan import make_plan
from pruning.planning.plan import PlanRanking, PlanTarget, Predicted, PruningPlan
from pruning.planning.workload import Workload
from tests.pruning.cut_models import next_token_logits, random_ranking
from tests.pruning.packed_models import (
    ATTENTION,
    BITS,
    FFN,
    JOINT,
    cut_and_rounded,
    plan_of,
    rounded,
    save_wide_checkpoint,
)

compressors = pytest.importorskip("compressed_tensors.compressors.pack_quantized")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_wide_checkpoint(tmp_path_factory.mktemp("wide"))


@pytest.mark.parametrize("architecture", [BITS, JOINT], ids=["bits", "joint"])
def test_the_folder_is_what_was_scored_and_priced(
    architecture: Architecture, wide: Path, conversations: list[Conversation], tmp_path: Path
) -> None:
    anatomy, ranking, plan = read_anatomy(wide), random_ranking(read_anatomy(wide)), plan_of(wide, architecture)
    batches = make_batches(conversations, load_processor(wide))
    rounder = RoundedWeights(torch.bfloat16)
    evaluate = ConfigurationEvaluator(load_model(wide, dtype=torch.float32), batches, ranking, rounder=rounder)
    scored, dense, again = evaluate([architecture, Architecture(), architecture])
    assert (dense.kl, again) == (0.0, scored)
    assert scored.kl > 1e-4

    out = prune_checkpoint(wide, plan, ranking, tmp_path / "out")
    assert check_pruned(wide, PruningPlan.load(out / "lop_plan.json"), ranking, out).num_solved == 0
    # Where nothing is cut, transformers needs nothing of ours.
    load = AutoModelForImageTextToText.from_pretrained if architecture is BITS else load_pruned
    twin = cut_and_rounded(wide, architecture)
    assert torch.equal(next_token_logits(load(out, dtype="auto")), next_token_logits(twin))
    measured = evaluate_model(twin.float(), batches, load_model(wide, dtype=torch.float32))
    assert measured.kl == pytest.approx(scored.kl, rel=1e-3)
    assert measured.nll == pytest.approx(scored.nll, rel=1e-5)

    stored = stored_tensors(out)
    assert plan.achieved.disk_bytes == sum(x.stat().st_size for x in out.glob("*.safetensors"))
    tensors = sum(tensor.num_bytes for tensor in stored.values())
    assert prices.weight_bytes(anatomy).cost(architecture) == tensors
    assert plan.achieved.disk_bytes - tensors <= header_bytes_bound(anatomy, packs=True)
    saved = prices.weight_bytes(anatomy).total - tensors
    same_cache = prices.memory_bytes(anatomy, Workload())
    sizes = anatomy.sizes(architecture)
    cache = (
        same_cache.total
        - same_cache.cost(sizes)
        - (prices.weight_bytes(anatomy).total - prices.weight_bytes(anatomy).cost(sizes))
    )
    assert same_cache.total - same_cache.cost(architecture) == saved + cache


def solving(folder: Path, conversations: list[Conversation], sites: list[SolvedSite] | None = None) -> Reconstruction:
    batches = BatchStream(conversations, load_processor(folder), batch_size=4, max_tokens=1000)
    on_solved = None if sites is None else sites.extend
    return Reconstruction(batches, calibration_id(conversations), torch.device("cpu"), on_solved=on_solved)


def test_what_is_solved_anew_is_rounded_then(wide: Path, conversations: list[Conversation], tmp_path: Path) -> None:
    anatomy, ranking, plan = read_anatomy(wide), random_ranking(read_anatomy(wide)), plan_of(wide, JOINT)
    sites: list[SolvedSite] = []
    data = solving(wide, conversations, sites)
    out = prune_checkpoint(wide, plan, ranking, tmp_path / "out", reconstruction=data)
    assert [(site.layer, site.sublayer) for site in sites] == [(0, FFN), (1, ATTENTION), (2, FFN), (3, FFN)]
    units = prune_checkpoint(
        wide, plan_of(wide, anatomy.sizes(JOINT)), ranking, tmp_path / "units", reconstruction=data
    )
    found = next_token_logits(load_pruned(out, dtype="auto"))
    assert torch.equal(found, next_token_logits(rounded(load_pruned(units, dtype="auto"), JOINT)))
    assert not torch.equal(found, next_token_logits(cut_and_rounded(wide, JOINT)))
    # Codes, scales and shape of two weights, and two that are plain numbers.
    checked = check_pruned(wide, plan, ranking, out)
    assert (checked.num_solved, checked.weights_bytes) == (3 + 3 + 1 + 1, plan.achieved.disk_bytes)


def test_folder_and_card_say_in_how_many_bits_weights_are(wide: Path, tmp_path: Path) -> None:
    ranking, dense = random_ranking(read_anatomy(wide)), inspect_checkpoint(wide)
    for architecture, loads, heading in (
        (BITS, "All layers have the dense model's sizes", ", quantised"),
        (JOINT, "lop.load_pruned(FOLDER)", ", pruned and quantised"),
    ):
        plan = plan_of(wide, architecture)
        out = prune_checkpoint(wide, plan, ranking, tmp_path / heading)
        found = inspect_checkpoint(out)
        assert found.parameters == plan.achieved.parameters
        said = {Site(x.index, half): bits for x in found.layers for half, bits in halves(x) if bits is not None}
        assert said == {site: option.bits for site, option in architecture.items if option.bits is not None}
        assert found.runs_in[-1] == "llama.cpp, by lop export gguf"
        assert not any("whatever" in runtime for runtime in found.runs_in)
        card = (out / "README.md").read_text()
        assert loads in card
        assert heading in card.partition("\n## ")[0]
        assert "8 bits become q8_0 and 4 bits q4_0" in card
        assert ("0.0%" in card) is False
        if architecture is BITS:
            config = json.loads((out / "config.json").read_text())
            for scheme in config["quantization_config"]["config_groups"].values():
                scheme["weights"]["symmetric"] = False  # which llama.cpp's blocks cannot say
            (out / "config.json").write_text(json.dumps(config))
            assert "llama.cpp" not in str(inspect_checkpoint(out).runs_in)
    assert dense.parameters == read_anatomy(wide).total_parameters
    assert {(x.ffn_bits, x.attention_bits) for x in dense.layers} == {(None, None)}


def halves(layer: InspectedLayer) -> list[tuple[Sublayer, int | None]]:
    return [(FFN, layer.ffn_bits), (ATTENTION, layer.attention_bits)]


def test_a_plan_says_which_rounding_it_predicts(wide: Path) -> None:
    anatomy, predicted = read_anatomy(wide), Predicted(quality=0.1, of="unseen")
    ranking = PlanRanking(sha256=random_ranking(anatomy).sha256)
    for architecture, rounding in ((JOINT, "rtn"), (anatomy.sizes(JOINT), None)):
        plan = make_plan(
            anatomy,
            architecture,
            model_id="tiny",
            target=PlanTarget(sparsity=0.0),
            method="test",
            ranking=ranking,
            predicted=predicted,
        )
        assert plan.predicted is not None
        assert plan.predicted.rounding == rounding
        assert ('"rounding"' in plan.to_json()) is (rounding is not None)
        assert PruningPlan.from_json(plan.to_json()) == plan


def test_codes_are_packed_as_the_library_does(wide: Path, tmp_path: Path) -> None:
    out = prune_checkpoint(wide, plan_of(wide, BITS), random_ranking(read_anatomy(wide)), tmp_path / "out")
    from safetensors.torch import load_file

    written, dense = load_file(out / "model.safetensors"), load_file(wide / "model.safetensors")
    name = next(x for x in dense if x.endswith("layers.3.mlp.down_proj.weight") and "vision" not in x)
    codes = compressors.unpack_from_int32(written[f"{name}_packed"], 4, dense[name].shape)
    assert torch.equal(compressors.pack_to_int32(codes, 4), written[f"{name}_packed"])
    restored = (codes.view(-1, 2, 32) * written[f"{name}_scale"][..., None]).flatten(1)
    assert (restored.float() - dense[name].float()).square().mean() < 0.01 * dense[name].float().square().mean()
    assert written[f"{name}_shape"].tolist() == [32, 64]


def test_what_is_refused(wide: Path, checkpoint: Path, conversations: list[Conversation], tmp_path: Path) -> None:
    ranking = random_ranking(read_anatomy(wide))
    with pytest.raises(PlanError, match="not made in memory"):
        apply_plan(load_model(wide), plan_of(wide, BITS), ranking)
    with pytest.raises(InputError, match="whole groups of 32"):
        plan_of(wide, Architecture.of({Site(0, FFN): Option(40, 4)}))
    with pytest.raises(InputError, match="whole groups of 32"):
        plan_of(checkpoint, Architecture.of({Site(0, FFN): Option(48, 8)}))
    evaluate = ConfigurationEvaluator(load_model(wide), make_batches(conversations[:2], load_processor(wide)), ranking)
    with pytest.raises(InputError, match="KV groups if the ranking"):
        evaluate([BITS])
    out = prune_checkpoint(wide, plan_of(wide, BITS), ranking, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"must be the plan"):
        check_pruned(wide, plan_of(wide, JOINT), ranking, out)


def test_rounded_weights_are_kept_within_a_bound() -> None:
    roomy, narrow = RoundedWeights(torch.float32), RoundedWeights(torch.float32, max_bytes=1)
    weight, places = torch.randn(8, 64), torch.randperm(64)
    for rounder in (roomy, narrow):
        found = rounder(Site(0, FFN), 0, 64, 4, weight, places)
        order = places.argsort()
        assert torch.equal(rounder(Site(0, FFN), 1, 64, 4, weight[:, order], None), found[:, order])
        assert not torch.equal(rounder(Site(0, FFN), 0, 64, 8, weight, places), found)
    assert roomy.num_bytes == 3 * weight.nbytes
    assert narrow.num_bytes == 0
