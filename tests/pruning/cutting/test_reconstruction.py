"""Weights that are solved anew: in memory, and from files to files, where a run may be killed anywhere."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import lop
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.checkpoints.anatomy_reader import anatomy_of, read_anatomy
from pruning.checkpoints.loading import PLAN_NAME, load_model, load_processor, load_pruned
from pruning.cutting.prune_checkpoint import prune_checkpoint, save_pruned
from pruning.cutting.pruned_config import RECOVERY_KEY
from pruning.cutting.reconstruct_checkpoint import Reconstruction
from pruning.cutting.reconstruct_model import reconstruct_and_cut
from pruning.cutting.reconstruction import SolvedInMemory, SolvedSite, reconstruct
from pruning.cutting.streaming.solved import solved_folder
from pruning.data.batches import BatchStream, make_batches, num_rows
from pruning.data.conversations import Conversation, calibration_id, load_conversations
from pruning.errors import CheckpointError, InputError, PlanError
from pruning.forward.layer_source import loaded_layers
from pruning.planning.plan import BIAS, PruningPlan, RecoveryStep
from pruning.planning.ranking import Ranking
from tests.pruning.cut_models import kept_groups, next_token_logits, plan_for, random_ranking
from tests.tiny_models import save_tiny_checkpoint, write_conversations

WIDTHS = [16, 8, 48, 40]
CPU = torch.device("cpu")


def told(
    folder: Path,
    conversations: list[Conversation],
    *,
    on_batch: Callable[[int, int], None] | None = None,
    sites: list[SolvedSite] | None = None,
) -> Reconstruction:
    batches = BatchStream(conversations, load_processor(folder), batch_size=4, max_tokens=1000)
    on_solved = None if sites is None else sites.extend
    return Reconstruction(batches, calibration_id(conversations), CPU, on_batch=on_batch, on_solved=on_solved)


def planned(anatomy: ModelAnatomy, *, skips: bool = False) -> tuple[PruningPlan, Ranking]:
    """Every layer loses channels or groups; if it `skips`, also all of a sub-layer: first attention, then the FFN."""
    ranking, widths, groups = random_ranking(anatomy), list(WIDTHS), kept_groups(anatomy)
    if skips:
        widths[1] = groups[0] = 0
    return plan_for(anatomy, ranking, widths, groups), ranking


def weights_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def with_copies(model: PreTrainedModel) -> PreTrainedModel:
    """In every layer channels 24..47 say what 0..23 say, and the second KV group what the first says."""
    with torch.no_grad():
        for layer in model.get_decoder().layers:
            for linear in (layer.mlp.gate_proj, layer.mlp.up_proj):
                linear.weight[24:] = linear.weight[:24]
            for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                half = len(linear.weight) // 2
                linear.weight[half:] = linear.weight[:half]
    return model


def test_what_is_kept_takes_over_for_its_copies(checkpoint: Path, conversations: list[Conversation]) -> None:
    """So nothing is lost but a damping of a thousandth; a plain cut loses half of all outputs."""
    model = with_copies(load_model(checkpoint))
    anatomy = anatomy_of(model)
    orders = tuple(np.arange(48, dtype=np.int32) for _ in range(4))
    groups = tuple(np.arange(2, dtype=np.int32) for _ in range(4))
    ranking = Ranking(orders, anatomy.fingerprint, kv_groups=groups)
    plan = plan_for(anatomy, ranking, [24] * 4, [1] * 4)
    dense = next_token_logits(model)
    plain = next_token_logits(lop.apply_plan(with_copies(load_model(checkpoint)), plan, ranking))
    sites = reconstruct_and_cut(model, plan, ranking, conversations, load_processor(checkpoint))
    assert [(site.layer, site.sublayer.value, site.inputs) for site in sites[:2]] == [
        (0, "attention", 16),
        (0, "ffn", 24),
    ]
    assert all(site.loss < 0.01 * site.plain_loss for site in sites)
    error, plain_error = (float((x - dense).norm() / dense.norm()) for x in (next_token_logits(model), plain))
    assert error < 0.03 * plain_error


@pytest.mark.parametrize("family", ["llava-llama", "phi", "phi3", "gemma2"])
def test_files_and_memory_agree(family: str, tmp_path: Path, conversations: list[Conversation]) -> None:
    folder = save_tiny_checkpoint(tmp_path / "dense", family, shard="60KB")
    data = conversations if family == "llava-llama" else load_conversations(text_only(tmp_path))
    plan, ranking = planned(read_anatomy(folder), skips=family == "gemma2")
    sites: list[SolvedSite] = []
    out = prune_checkpoint(folder, plan, ranking, tmp_path / "out", reconstruction=told(folder, data, sites=sites))
    model = load_model(folder)
    in_memory = reconstruct_and_cut(model, plan, ranking, data, load_processor(folder))
    loaded = load_pruned(out)
    # Batches differ, and with them the order in which products are summed up.
    torch.testing.assert_close(next_token_logits(loaded), next_token_logits(model), rtol=1e-3, atol=1e-3)
    assert [(x.layer, x.sublayer, x.tokens) for x in sites] == [(x.layer, x.sublayer, x.tokens) for x in in_memory]
    # What is kept whole is as it was.
    plain = load_pruned(prune_checkpoint(folder, plan, ranking, tmp_path / "plain"))
    own = plain.state_dict()
    solved = {name for name, x in loaded.state_dict().items() if not torch.equal(x, own[name])}
    assert solved
    assert {name.split(".")[-2] for name in solved} <= {"down_proj", "o_proj", "fc2", "dense"}


def text_only(tmp_path: Path) -> Path:
    items = json.loads(write_conversations(tmp_path / "data", 8).read_text())
    for item in items:
        item.pop("image", None)
        item["conversations"][0]["value"] = item["conversations"][0]["value"].removeprefix("<image>\n")
    path = tmp_path / "text.json"
    path.write_text(json.dumps(items))
    return path


def test_plan_and_config_record_the_step(checkpoint: Path, conversations: list[Conversation], tmp_path: Path) -> None:
    plan, ranking = planned(read_anatomy(checkpoint))
    step = RecoveryStep(kind="reconstruction", settings={"calibration": calibration_id(conversations)})
    out = prune_checkpoint(checkpoint, plan, ranking, tmp_path / "out", reconstruction=told(checkpoint, conversations))
    written = PruningPlan.load(out / PLAN_NAME)
    assert written == plan.model_copy(update={"recovery": (step,)})
    assert json.loads((out / "config.json").read_text())[RECOVERY_KEY] == [step.model_dump(mode="json")]
    # Saved again from memory, it still says so; and so does one that was solved there.
    model = load_model(checkpoint)
    reconstruct_and_cut(model, plan, ranking, conversations, load_processor(checkpoint))
    saved = save_pruned(model, plan, tmp_path / "saved")
    assert PruningPlan.load(saved / PLAN_NAME) == written
    assert getattr(load_pruned(saved).config, RECOVERY_KEY) == [step.model_dump(mode="json")]
    # Such a plan is not applied without data, nor with other data.
    with pytest.raises(PlanError, match="counts on reconstruction is applied with calibration data"):
        prune_checkpoint(checkpoint, written, ranking, tmp_path / "again")
    other = told(checkpoint, conversations[:3])
    with pytest.raises(PlanError, match="says with which settings"):
        prune_checkpoint(checkpoint, written, ranking, tmp_path / "again", reconstruction=other)
    assert not (tmp_path / "again").exists()


def stopped_at(number: int) -> Callable[[int, int], None]:
    """Progress that is interrupted after so many conversations."""

    def on_batch(done: int, total: int) -> None:
        assert done <= total
        if done > number:
            raise KeyboardInterrupt

    return on_batch


# Six conversations a pass: front end, first layer recorded, passed, second layer recorded, ...
@pytest.mark.parametrize(("stop_at", "finished"), [(9, 0), (30, 2)])
def test_a_run_that_stops_is_gone_on_with(
    stop_at: int, finished: int, checkpoint: Path, conversations: list[Conversation], tmp_path: Path
) -> None:
    plan, ranking = planned(read_anatomy(checkpoint))
    whole = prune_checkpoint(
        checkpoint, plan, ranking, tmp_path / "whole", reconstruction=told(checkpoint, conversations)
    )
    out = tmp_path / "out"
    how = told(checkpoint, conversations, on_batch=stopped_at(stop_at))
    with pytest.raises(KeyboardInterrupt):
        prune_checkpoint(checkpoint, plan, ranking, out, reconstruction=how)
    assert not out.exists()
    assert len(list(solved_folder(out).glob("layer-*"))) == finished
    totals: list[int] = []
    how = told(checkpoint, conversations, on_batch=lambda _, total: totals.append(total))
    prune_checkpoint(checkpoint, plan, ranking, out, reconstruction=how)
    assert totals[-1] == 6 * (8 - finished)
    assert weights_of(out) == weights_of(whole)
    assert not solved_folder(out).exists()


def test_solved_layers_of_other_data_are_not_taken(
    checkpoint: Path, conversations: list[Conversation], tmp_path: Path
) -> None:
    plan, ranking = planned(read_anatomy(checkpoint))
    out = tmp_path / "out"
    how = told(checkpoint, conversations, on_batch=stopped_at(20))
    with pytest.raises(KeyboardInterrupt):
        prune_checkpoint(checkpoint, plan, ranking, out, reconstruction=how)
    assert list(solved_folder(out).glob("layer-*"))
    totals: list[int] = []
    how = told(checkpoint, conversations[:4], on_batch=lambda _, total: totals.append(total))
    prune_checkpoint(checkpoint, plan, ranking, out, reconstruction=how)
    assert totals[-1] == 4 * 8


def test_nothing_is_left_of_a_run_that_cannot_end(
    checkpoint: Path, conversations: list[Conversation], tmp_path: Path
) -> None:
    plan, ranking = planned(read_anatomy(checkpoint))
    with pytest.raises(InputError, match="need two conversations"):
        prune_checkpoint(
            checkpoint, plan, ranking, tmp_path / "out", reconstruction=told(checkpoint, conversations[:1])
        )
    model = load_model(checkpoint)
    with torch.no_grad():
        model.get_decoder().layers[1].mlp.up_proj.weight[5] = float("inf")
    model.save_pretrained(tmp_path / "broken")
    how = told(checkpoint, conversations)
    with pytest.raises(CheckpointError, match=r"enters mlp\.down_proj of layer 1"):
        prune_checkpoint(tmp_path / "broken", plan, ranking, tmp_path / "out", reconstruction=how)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken"]


def test_a_bias_makes_up_for_the_mean_of_what_is_still_lost(
    checkpoint: Path, conversations: list[Conversation]
) -> None:
    """FLAP's bias is a step of its own: W m - W' m[S], with the means that the ranking carries."""
    model = load_model(checkpoint)
    anatomy = anatomy_of(model)
    scores = [np.random.default_rng(1).random(48) for _ in range(4)]
    ranking = Ranking.from_scores(anatomy, scores, means=[np.linspace(-1, 1, 48)] * 4)
    plan = plan_for(anatomy, ranking, [24] * 4).model_copy(update={"recovery": (BIAS,)})
    dense = [layer.mlp.down_proj.weight.detach().clone().double() for layer in model.get_decoder().layers]
    reconstruct_and_cut(model, plan, ranking, conversations, load_processor(checkpoint))
    means = torch.linspace(-1, 1, 48, dtype=torch.float64)
    for index, layer in enumerate(model.get_decoder().layers):
        kept = torch.from_numpy(np.sort(ranking.ffn[index][:24])).long()
        expected = dense[index] @ means - layer.mlp.down_proj.weight.double() @ means[kept]
        torch.testing.assert_close(layer.mlp.down_proj.bias.double(), expected, rtol=1e-4, atol=1e-5)
    assert [step["kind"] for step in getattr(model.config, RECOVERY_KEY)] == ["bias", "reconstruction"]


def test_inputs_come_through_what_is_cut(checkpoint: Path, conversations: list[Conversation]) -> None:
    """The first layer sees the same inputs either way, later ones do not; the model stays as it was."""
    model = load_model(checkpoint)
    anatomy = anatomy_of(model)
    plan, ranking = planned(anatomy)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batches = make_batches(conversations, load_processor(checkpoint), batch_size=4)
    found = []
    for propagates in (True, False):
        solved = SolvedInMemory()
        with loaded_layers(model) as source:
            reconstruct(
                source,
                batches,
                anatomy,
                plan.architecture(anatomy),
                ranking,
                solved,
                num_rows=num_rows(batches),
                propagates=propagates,
            )
        found.append(solved.layers)
    through, dense = found
    name = "mlp.down_proj.weight"
    assert torch.equal(through[0].tensors[name], dense[0].tensors[name])
    assert not torch.equal(through[3].tensors[name], dense[3].tensors[name])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_file_and_the_models_own_processor_will_do(checkpoint: Path, tmp_path: Path) -> None:
    data = write_conversations(tmp_path / "data", 3)
    plan, ranking = planned(read_anatomy(checkpoint))
    model = lop.apply_plan(load_model(checkpoint), plan, ranking, reconstruct=data)
    other = load_model(checkpoint)
    reconstruct_and_cut(other, plan, ranking, load_conversations(data), load_processor(checkpoint))
    assert torch.equal(next_token_logits(model), next_token_logits(other))
    assert all(parameter.requires_grad for parameter in model.parameters())  # to be trained on


def test_too_few_tokens_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "model", ffn_width=128)
    anatomy = read_anatomy(checkpoint)
    ranking = random_ranking(anatomy)
    plan = plan_for(anatomy, ranking, [128, 120, 128, 128], [2, 2, 1, 2])
    lop.apply_plan(load_model(checkpoint), plan, ranking, reconstruct=write_conversations(tmp_path / "data", 2))
    (said,) = [record.getMessage() for record in caplog.records if record.name == "lop.applying"]
    assert "for up to 120 inputs of a projection: without damping nothing could be solved" in said
