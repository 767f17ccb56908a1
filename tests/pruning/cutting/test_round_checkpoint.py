"""Plans with bits rounded by GPTQ: as `lop quantise` rounds, after units were cut and solved anew."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pruning.anatomy.architecture import Architecture, Option, Site
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.loading import load_model, load_processor, load_pruned
from pruning.cutting.check_pruned import check_pruned
from pruning.cutting.prune_checkpoint import prune_checkpoint
from pruning.cutting.reconstruct_checkpoint import Reconstruction
from pruning.cutting.rewriting.block_files import BlockFiles
from pruning.cutting.rewriting.quantise_checkpoint import Quantisation, quantise_checkpoint
from pruning.cutting.rewriting.quantiser import Rounding
from pruning.cutting.rewriting.rewriter import Rewritten
from pruning.cutting.round_checkpoint import GptqRounding
from pruning.cutting.streaming.solved import solved_folder
from pruning.data.batches import BatchStream, make_batches
from pruning.data.conversations import Conversation, calibration_id
from pruning.errors import CheckpointError, PlanError
from pruning.measuring.evaluation import evaluate_model
from pruning.planning.plan import PruningPlan
from tests.pruning.cut_models import plan_for, random_ranking
from tests.pruning.packed_models import ATTENTION, BITS, FFN, JOINT, plan_of, save_wide_checkpoint

pytest.importorskip("compressed_tensors")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_wide_checkpoint(tmp_path_factory.mktemp("wide"))


def stream(folder: Path, conversations: list[Conversation]) -> BatchStream:
    return BatchStream(conversations, load_processor(folder), batch_size=4, max_tokens=1000)


def rounding(
    folder: Path, conversations: list[Conversation], notes: dict[str, Mapping[str, Any]] | None = None
) -> GptqRounding:
    on_rounded = None if notes is None else notes.update
    own = stream(folder, conversations), calibration_id(conversations), torch.device("cpu")
    return GptqRounding(*own, on_rounded=on_rounded)


def solving(folder: Path, conversations: list[Conversation]) -> Reconstruction:
    return Reconstruction(stream(folder, conversations), calibration_id(conversations), torch.device("cpu"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return found


def test_where_nothing_is_cut_it_is_what_lop_quantise_writes(
    wide: Path, conversations: list[Conversation], tmp_path: Path
) -> None:
    bits = (8, 4, 4, 8)
    sites = {
        Site(layer, half): Option(2 if half is ATTENTION else 64, own)
        for layer, own in enumerate(bits)
        for half in (ATTENTION, FFN)
    }
    plan, ranking = plan_of(wide, Architecture.of(sites)), random_ranking(read_anatomy(wide))
    notes: dict[str, Mapping[str, Any]] = {}
    out = prune_checkpoint(wide, plan, ranking, tmp_path / "out", rounding=rounding(wide, conversations, notes))
    asked = Quantisation(Rounding.GPTQ, bits, 32)
    report = quantise_checkpoint(
        wide, tmp_path / "quantised", asked, torch.device("cpu"), batches=stream(wide, conversations)
    )
    found, expected = weights(out), weights(tmp_path / "quantised")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert notes == report["projections"]
    assert not solved_folder(out).exists()


@pytest.mark.parametrize("solves", [False, True], ids=["cut", "solved"])
def test_what_is_cut_and_solved_is_rounded_with_less_loss_than_to_nearest(
    solves: bool, wide: Path, conversations: list[Conversation], tmp_path: Path
) -> None:
    """JOINT in 4 bits throughout, of which one layer is left as it is and one sub-layer is skipped."""
    fewer = {site: Option(x.units, None if x.bits is None else 4) for site, x in JOINT.items}
    anatomy, ranking = read_anatomy(wide), random_ranking(read_anatomy(wide))
    plan = plan_of(wide, Architecture.of(fewer))
    units = plan_of(wide, anatomy.sizes(JOINT))

    def written(own: PruningPlan, name: str, *, gptq: bool = False) -> Path:
        return prune_checkpoint(
            wide,
            own,
            ranking,
            tmp_path / name,
            reconstruction=solving(wide, conversations) if solves else None,
            rounding=rounding(wide, conversations) if gptq else None,
        )

    out, nearest, dense = written(plan, "out", gptq=True), written(plan, "nearest"), written(units, "units")
    batches = make_batches(conversations, load_processor(wide))
    twin = load_pruned(dense, dtype=torch.float32)
    losses = [evaluate_model(load_pruned(x, dtype=torch.float32), batches, twin).kl for x in (out, nearest)]
    assert losses[0] < 0.9 * losses[1], losses
    found, plain = weights(out), weights(nearest)
    assert {name: x.shape for name, x in found.items()} == {name: x.shape for name, x in plain.items()}
    changed = {name for name, x in found.items() if not torch.equal(x, plain[name])}
    assert {name.rpartition("_")[2] for name in changed} == {"packed", "scale"}
    # What is written, and what can be held against the plan.
    inside = PruningPlan.load(out / "lop_plan.json")
    kinds = [*(["reconstruction"] if solves else []), "rounding"]
    assert [step.kind for step in inside.recovery] == kinds
    assert inside.recovery[-1].settings == {"method": "gptq", "calibration": calibration_id(conversations)}
    config = json.loads((out / "config.json").read_text())
    assert [step["kind"] for step in config["lop_recovery"]] == kinds
    assert "rounded by GPTQ.\ntransformers reads them with `pip" in (out / "README.md").read_text()
    num_packed = sum(name.endswith(("_packed", "_scale", "_shape")) for name in found)
    checked = check_pruned(wide, plan, ranking, out)
    assert checked.num_solved == num_packed + (2 if solves else 0)
    assert checked.weights_bytes == plan.achieved.disk_bytes


@pytest.mark.parametrize("solves", [False, True], ids=["cut", "solved"])
def test_a_run_that_is_killed_goes_on(
    solves: bool, wide: Path, conversations: list[Conversation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, ranking = plan_of(wide, JOINT if solves else BITS), random_ranking(read_anatomy(wide))

    def written(name: str) -> Path:
        reconstruction = solving(wide, conversations) if solves else None
        own = rounding(wide, conversations)
        return prune_checkpoint(wide, plan, ranking, tmp_path / name, reconstruction=reconstruction, rounding=own)

    put, stop = BlockFiles.put, 2
    done: list[int] = []

    def counted(self: Any, block: Any, rewritten: Rewritten) -> None:
        if block.index == stop:
            raise KeyboardInterrupt
        put(self, block, rewritten)
        done.append(block.index)

    monkeypatch.setattr(BlockFiles, "put", counted)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        written("out")
    assert (done, out.exists(), solved_folder(out).is_dir()) == ([0, 1], False, True)
    stop = -1
    written("out")
    again = done.copy()
    whole = written("whole")
    assert again == done[len(again) :]  # each layer was rounded once
    assert len(again) > 2
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert not solved_folder(out).exists()


def test_what_is_refused(wide: Path, conversations: list[Conversation], tmp_path: Path) -> None:
    anatomy, ranking = read_anatomy(wide), random_ranking(read_anatomy(wide))
    plain = plan_for(anatomy, ranking, [64, 32, 64, 64])
    with pytest.raises(PlanError, match=r"GPTQ rounds weights in fewer bits.*has none"):
        prune_checkpoint(wide, plain, ranking, tmp_path / "out", rounding=rounding(wide, conversations))
    own = rounding(wide, conversations)
    counting = plan_of(wide, BITS).recovered_by(own.step)
    with pytest.raises(PlanError, match=r"counts on GPTQ is applied with calibration data"):
        prune_checkpoint(wide, counting, ranking, tmp_path / "out")
    with pytest.raises(PlanError, match=r"counts on rounding says with which settings"):
        prune_checkpoint(wide, counting, ranking, tmp_path / "out", rounding=rounding(wide, conversations[:3]))
    assert not any(tmp_path.iterdir())


def test_what_a_plan_counts_on_is_in_the_order_in_which_it_is_done(
    wide: Path, conversations: list[Conversation], tmp_path: Path
) -> None:
    ranking, own, solved = (
        random_ranking(read_anatomy(wide)),
        rounding(wide, conversations),
        solving(wide, conversations),
    )
    plan = plan_of(wide, JOINT).recovered_by(own.step).recovered_by(solved.step)
    assert [step.kind for step in plan.recovery] == ["reconstruction", "rounding"]
    # Either refusal says what is asked for in the end.
    for given in ({}, {"rounding": own}, {"reconstruction": solved}):
        with pytest.raises(PlanError, match=r"--reconstruct FILE.*--method gptq|--method gptq --reconstruct FILE"):
            prune_checkpoint(wide, plan, ranking, tmp_path / "out", **given)


def test_activations_that_are_not_finite_are_named(
    wide: Path, conversations: list[Conversation], tmp_path: Path
) -> None:
    model = load_model(wide)
    with torch.no_grad():
        model.get_decoder().layers[2].post_attention_layernorm.weight.fill_(float("inf"))
    model.save_pretrained(tmp_path / "m")
    load_processor(wide).save_pretrained(tmp_path / "m")
    ranking, out = random_ranking(read_anatomy(tmp_path / "m")), tmp_path / "out"
    with pytest.raises(CheckpointError, match=r"NaN or infinity enters mlp\.gate_proj of language layer 2"):
        prune_checkpoint(
            tmp_path / "m", plan_of(tmp_path / "m", BITS), ranking, out, rounding=rounding(wide, conversations)
        )
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
