"""Recoveries of other families than LLaVA's: where the projector lies elsewhere, is missing, or layers are fused."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import lop
from lop.workflows.recovering import recover_folder, recovery_data
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.headers import stored_tensors
from pruning.checkpoints.loading import load_model, load_processor
from pruning.cutting.prune_checkpoint import prune_checkpoint
from pruning.data import batches as batches_module
from pruning.data.batches import Batch, make_batches
from pruning.data.conversations import load_conversations
from pruning.errors import DatasetError, InputError
from recovery.passes import Passes
from recovery.recipe import Recipe
from recovery.trained import Trained
from tests.pruning.cut_models import WIDTHS, kept_groups, plan_for, random_ranking
from tests.recovery.conftest import Cut
from tests.tiny_models import IMAGE_FAMILIES, save_tiny_checkpoint, with_pictures, write_conversations

QWEN = [name for name in IMAGE_FAMILIES if name.startswith("qwen")]
FAMILIES = ["qwen2-vl", "qwen3-vl", "smolvlm", "llama", "phi3"]
"""A projector inside the tower; several of them; Idefics' connector; no picture; fused projections."""
MODES = ["projector", "full", pytest.param("lora", marks=pytest.mark.skipif(not find_spec("peft"), reason="no peft"))]


def with_pictures_of(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """The tiny processor's batches, their pictures as the family's model takes them."""
    own: Callable[..., Batch] = batches_module._make_batch

    def made(texts: Sequence[Any], processor: Any) -> Batch:
        batch = own(texts, processor)
        return replace(batch, inputs=with_pictures(family, batch).inputs)

    monkeypatch.setattr(batches_module, "_make_batch", made)


@pytest.fixture(scope="module")
def cuts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Cut]:
    """Of any family; each is made once."""
    made: dict[str, Cut] = {}

    def cut(family: str) -> Cut:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            dense = save_tiny_checkpoint(folder / "dense", family)
            anatomy = read_anatomy(dense)
            ranking = random_ranking(anatomy)
            plan = plan_for(anatomy, ranking, WIDTHS, kept_groups(anatomy))
            prune_checkpoint(dense, plan, ranking, folder / "pruned")
            data = write_conversations(folder, count=16) if family in IMAGE_FAMILIES else texts(folder)
            made[family] = Cut(dense, folder / "pruned", plan, ranking, data)
        return made[family]

    return cut


def texts(folder: Path) -> Path:
    path = folder / "texts.json"
    said = [[{"from": "human", "value": f"is it {i}?"}, {"from": "gpt", "value": "red blue"}] for i in range(16)]
    path.write_text(str([{"conversations": one} for one in said]).replace("'", '"'))
    return path


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_two_steps_of_every_mode(
    cuts: Callable[[str], Cut], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, mode: str
) -> None:
    cut, out = cuts(family), tmp_path / "out"
    with_pictures_of(monkeypatch, family)
    monkeypatch.setattr("recovery.report.beats", lambda _after, _before: True)
    monkeypatch.setattr("recovery.scores.AnswerScores.accuracy", property(lambda _self: 0.0))
    settings = {"steps": 2, "evaluations": 2, "learning_rate": 3e-4, "step_tokens": 1000, "batch_tokens": 200}
    recipe = Recipe.of(mode=mode, losses={"kd-logits": 1}, **settings)  # KL decides which weights are written

    def run() -> dict[str, Any]:
        return recover_folder(cut.pruned, cut.dense, recovery_data(cut.data, recipe=recipe), recipe, out)

    if mode == "projector" and family not in IMAGE_FAMILIES:
        with pytest.raises(DatasetError, match=r"on conversations about pictures.*Use --mode lora or full"):
            run()
        with pytest.raises(InputError, match=f"a projector is trained where a model has one.*{family}"):
            Trained(load_model(cut.pruned), recipe)
        return
    report = run()
    assert (report["steps"], report["best_step"] > 0) == (2, True)
    before, after = stored_tensors(cut.pruned), stored_tensors(out)
    assert {n: x.header for n, x in before.items()} == {n: x.header for n, x in after.items()}
    start, model = (dict(lop.load_pruned(folder).named_parameters()) for folder in (cut.pruned, out))
    changed = {name for name, parameter in model.items() if not torch.equal(parameter, start[name])}
    projector = {name for name in model if any(x in name for x in ("projector", "connector", "merger"))}
    layers = {name for name in model if ".layers." in name and "vision" not in name and "visual" not in name}
    expected = {"projector": projector, "lora": layers, "full": projector | layers}[mode]
    assert changed
    assert changed <= expected | ({name for name in model if name.endswith("norm.weight")} if mode == "full" else set())
    assert bool(changed & projector) == (mode != "lora" and bool(projector))
    assert bool(changed & layers) == (mode != "projector")


@pytest.mark.parametrize("family", QWEN)
def test_a_tower_with_its_projector_inside_runs_once(
    cuts: Callable[[str], Cut], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    cut = cuts(family)
    with_pictures_of(monkeypatch, family)
    batches = make_batches(load_conversations(cut.data), load_processor(cut.dense))
    model = load_model(cut.pruned)
    trained = Trained(model, Recipe.of(mode="projector"))
    calls: list[int] = []
    blocks = model.model.visual.blocks
    blocks[0].attn.register_forward_hook(lambda *_: calls.append(1))

    def states(passes: Passes, index: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        last, _ = passes(index)
        gradients = torch.autograd.grad(last.pow(2).mean(), list(trained.parameters.values()))
        return last.detach(), list(gradients)

    kept = Passes(model, batches, trains_before_decoder=True)
    first = [states(kept, index) for index in range(len(batches))]
    assert len(calls) == len(batches)
    again = [states(kept, index) for index in range(len(batches))]
    assert len(calls) == len(batches)
    anew = [
        states(Passes(model, batches, trains_before_decoder=True, recorded_bytes=0), i) for i in range(len(batches))
    ]
    assert len(calls) == 2 * len(batches)
    for other in (again, anew):
        for (last, gradients), (own, ours) in zip(first, other, strict=True):
            assert torch.equal(last, own)
            assert all(torch.equal(a, b) for a, b in zip(gradients, ours, strict=True))
