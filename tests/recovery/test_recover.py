"""Recovery of a tiny cut model: what is written, killed runs, starts that nothing beats, what is refused."""

import gc
import json
import re
import shutil
import weakref
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import lop
from lop.workflows.recovering import recover_folder, recovery_data
from pruning.checkpoints.headers import stored_tensors
from pruning.checkpoints.loading import load_model, load_processor
from pruning.cutting.check_pruned import check_pruned
from pruning.data import batches as batches_module
from pruning.data.batches import Batch
from pruning.errors import DatasetError
from recovery import losses, training
from recovery import teacher as teacher_module
from recovery.judged_training import training_batches
from recovery.judging import Judge, part_of, rough_length
from recovery.passes import Passes
from recovery.recipe import Recipe
from recovery.recover import Ears, state_folder
from recovery.scores import AnswerScores
from recovery.training import Watcher
from tests.recovery.conftest import Cut

SETTINGS: dict[str, Any] = {
    "mode": "full",
    "losses": {"kd-logits": 1.0, "kd-hidden": 1.0},
    "epochs": 4,
    "evaluations": 4,
    "learning_rate": 3e-3,
    "step_tokens": 16,
    "batch_tokens": 200,
}


def run(
    cut: Cut, out: Path, ears: Ears | None = None, *, conversations: Path | None = None, **changes: Any
) -> dict[str, Any]:
    recipe = Recipe.of(**SETTINGS | changes)
    data = recovery_data(conversations or cut.data, recipe=recipe)
    return recover_folder(cut.pruned, cut.dense, data, recipe, out, ears=ears)


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.fixture(autouse=True)
def _few_answers_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four answers of the selection part prove nothing; here a lower KL is enough."""
    monkeypatch.setattr("recovery.report.beats", lambda after, before: after.mean_kl < before.mean_kl)
    monkeypatch.setattr(AnswerScores, "accuracy", property(lambda _self: 0.0))


needs_peft = pytest.mark.skipif(not find_spec("peft"), reason="no peft")
MODES = ["projector", "full", pytest.param("lora", marks=needs_peft)]


@pytest.mark.parametrize("mode", MODES)
def test_a_recovered_checkpoint_is_one_of_lop_apply(cut: Cut, tmp_path: Path, mode: str) -> None:
    out = tmp_path / "out"
    report = run(cut, out, mode=mode, is_checkpointed=mode != "projector")
    assert report["written"] == "recovered"
    assert report["selection"]["after"]["kl"] < report["selection"]["before"]["kl"]
    before, after = stored_tensors(cut.pruned), stored_tensors(out)
    assert {n: x.header for n, x in before.items()} == {n: x.header for n, x in after.items()}
    model, start = lop.load_pruned(out), lop.load_pruned(cut.pruned)
    same = {n for n, p in model.named_parameters() if torch.equal(p, dict(start.named_parameters())[n])}
    trained = dict(model.named_parameters()).keys() - same
    assert all(("projector" in name) == (mode == "projector") or mode == "full" for name in trained)
    assert not any("vision_tower" in name or "embed_tokens" in name for name in trained)
    config = json.loads((out / "config.json").read_text())
    (step,) = config["lop_recovery"]
    assert (step["kind"], step["settings"]["recipe"]["mode"]) == ("distillation", mode)
    assert lop.PruningPlan.load(out / "lop_plan.json").recovery[-1].model_dump(mode="json") == step
    found = check_pruned(cut.dense, cut.plan, cut.ranking, out)
    assert found.num_solved == found.num_tensors
    assert "## Recovery" in (out / "README.md").read_text()
    assert not state_folder(out).exists()
    saved = lop.save_pruned(model, cut.plan, tmp_path / "saved")
    assert lop.PruningPlan.load(saved / "lop_plan.json").recovery[-1].kind == "distillation"


@pytest.mark.parametrize("mode", [x for x in MODES if x != "projector"])
def test_killed_and_run_again_it_ends_bit_equal(
    cut: Cut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(cut, whole, mode=mode)
    report = run_killed(cut, killed, monkeypatch, mode=mode)
    check_trained_alike(report, killed, whole, cut)


def with_pictures(cut: Cut, count: int) -> Path:
    """The conversations, of which only the first `count` keep their pictures; the others ask different things."""
    items = json.loads(cut.data.read_text())
    for index, item in enumerate(items[count:]):
        item.pop("image", None)
        question = item["conversations"][0]["value"].removeprefix("<image>\n")
        item["conversations"][0]["value"] = question + " ?" * index
    conversations = cut.data.with_name(f"pictures-{count}.json")
    conversations.write_text(json.dumps(items))
    return conversations


@pytest.mark.parametrize(("mode", "pictures"), [("full", 0), ("full", 6), ("projector", 6)])
def test_killed_where_few_steps_need_the_projector(
    cut: Cut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, pictures: int
) -> None:
    conversations = with_pictures(cut, pictures)
    changes: dict[str, Any] = {"conversations": conversations, "step_tokens": 1, "batch_tokens": 60, "epochs": 2}
    changes["mode"] = mode
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(cut, whole, **changes)
    report = run_killed(cut, killed, monkeypatch, **changes)
    check_trained_alike(report, killed, whole, cut)


def test_a_projector_is_not_trained_without_pictures(cut: Cut, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"conversations about pictures.*none of the 14 .*Use --mode lora or full"):
        run(cut, tmp_path / "out", mode="projector", conversations=with_pictures(cut, 0))
    assert not (tmp_path / "out").exists()


def check_trained_alike(report: dict[str, Any], killed: Path, whole: Path, cut: Cut) -> None:
    """What was killed ended as `whole`, by weights of after its death: the start would be equal after any resume."""
    assert report["written"] == "recovered"
    assert report["best_step"] > 5
    assert weights(killed) == weights(whole)
    assert weights(killed) != weights(cut.pruned)


def run_killed(cut: Cut, out: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> dict[str, Any]:
    """Run it, die at step 5, run it again; the report."""
    monkeypatch.setattr(training, "STATE_SECONDS", 0.0)
    steps: list[int] = []

    def die(done: int, *_: float) -> None:
        steps.append(done)
        if steps.count(5) == 1 and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(cut, out, Ears(watcher=Watcher(on_step=die)), **changes)
    assert not out.exists()
    report = run(cut, out, Ears(watcher=Watcher(on_step=die)), **changes)
    assert steps[:6] == [1, 2, 3, 4, 5, 5]
    return report


def test_a_run_that_goes_on_does_not_ask_the_dense_model_again(
    cut: Cut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"mode": "projector", "epochs": 1}

    def die(*_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(cut, tmp_path / "out", Ears(watcher=Watcher(on_step=die)), **changes)
    monkeypatch.setattr("recovery.judging._recorded", lambda *_: pytest.fail("asked again"))
    monkeypatch.setattr(teacher_module.Teacher, "_computed", lambda *_: pytest.fail("asked again"))
    assert run(cut, tmp_path / "out", **changes)["steps"] == 2


@pytest.mark.parametrize("mode", MODES)
def test_products_in_bfloat16(cut: Cut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """As on a GPU: the dense model as it is stored, its passes and the student's alike, to train and to judge."""
    plain = run(cut, tmp_path / "plain", mode=mode)
    judged: list[torch.dtype] = []
    own = Judge.passes

    def watched(judge: Judge, *arguments: Any, **keywords: Any) -> Passes:
        judged.extend(states.dtype for states in judge._dense)
        return own(judge, *arguments, **keywords)

    monkeypatch.setattr(Judge, "passes", watched)
    monkeypatch.setattr("recovery.precision.is_mixed", lambda _device: True)
    monkeypatch.setattr("recovery.precision.stored_dtype", lambda _folder: torch.bfloat16)
    mixed = run(cut, tmp_path / "mixed", mode=mode)
    assert set(judged) == {torch.bfloat16}
    assert mixed["written"] == "recovered"
    own_losses, plain_losses = ([loss for _, loss, _ in report["curve"]] for report in (mixed, plain))
    assert own_losses == pytest.approx(plain_losses, rel=0.05)
    assert own_losses != plain_losses
    for when in ("before", "after"):
        assert mixed["selection"][when]["nll"] == pytest.approx(plain["selection"][when]["nll"], rel=0.01)
    kinds = [{name: x.dtype for name, x in stored_tensors(tmp_path / name).items()} for name in ("plain", "mixed")]
    assert kinds[0] == kinds[1]


def test_the_dense_model_beside_or_on_disk_is_the_same(
    cut: Cut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(cut, tmp_path / "kept", hidden_layers=(0, 2))["written"] == "recovered"
    notes: list[str] = []
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(teacher_module, "disk_usage", lambda _path: usage._replace(free=10))
    run(cut, tmp_path / "beside", Ears(on_note=notes.append), hidden_layers=(0, 2))
    assert "computed beside" in notes[0]
    assert "10 are free" in notes[0]
    assert weights(tmp_path / "kept") == weights(tmp_path / "beside")


def test_the_room_on_disk_is_shared_by_the_processes_of_a_machine(
    cut: Cut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, recipe, usage = load_model(cut.dense), Recipe.of(**SETTINGS), shutil.disk_usage(tmp_path)
    data = recovery_data(cut.data, recipe=recipe)
    batches = training_batches(data.train, load_processor(cut.dense), recipe).own

    def kept(name: str, free: int, local_count: int) -> list[str]:
        monkeypatch.setattr(teacher_module, "disk_usage", lambda _path: usage._replace(free=free))
        notes: list[str] = []
        folder = tmp_path / name
        teacher_module.Teacher(model, batches, recipe, folder=folder, local_count=local_count, on_note=notes.append)
        return notes

    (none,) = kept("none", 10, 1)
    found = re.search(r"they take ([\d,]+) bytes", none)
    assert found is not None
    enough_for_one = int(found[1].replace(",", "")) + 2**28
    assert kept("one", enough_for_one, 1) == []
    (both,) = kept("both", enough_for_one, 2)
    assert "in each of 2 processes" in both


def test_the_bound_of_what_is_kept_on_disk(cut: Cut, tmp_path: Path) -> None:
    model, recipe = load_model(cut.dense), Recipe.of(**SETTINGS)
    batches = training_batches(recovery_data(cut.data, recipe=recipe).train, load_processor(cut.dense), recipe).own
    tokens = sum(int(batch.inputs["attention_mask"].sum()) for batch in batches)
    answers = sum(span.stop - span.start for batch in batches for span in batch.spans)
    needed = (tokens + answers) * 32 * 4  # float32 states of width 32

    def kept(cache_bytes: int) -> tuple[list[str], int, bool]:
        notes: list[str] = []
        folder = tmp_path / str(cache_bytes)
        teacher = teacher_module.Teacher(
            model, batches, recipe, folder=folder, cache_bytes=cache_bytes, on_note=notes.append
        )
        files = [load_file(path) for path in folder.glob("*.safetensors")]
        return notes, sum(x.numel() * x.element_size() for file in files for x in file.values()), teacher.holds_model

    assert kept(needed) == ([], needed, False)
    (note,), size, holds_model = kept(needed - 1)
    assert (size, holds_model) == (0, True)
    assert f"they take {needed:,} bytes, and {needed - 1:,} are allowed" in note


def test_pictures_beyond_a_bound_are_not_in_memory_and_made_again(
    cut: Cut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, own = Recipe.of(**SETTINGS), batches_module._make_batch
    made: list[weakref.ref[torch.Tensor]] = []

    def watched(*arguments: Any) -> Batch:
        batch = own(*arguments)
        if "pixel_values" in batch.inputs:
            made.append(weakref.ref(batch.inputs["pixel_values"]))
        return batch

    monkeypatch.setattr(batches_module, "_make_batch", watched)
    run(cut, tmp_path / "whole")
    picture, bound = 3 * 32 * 32 * 4, 8 * 3 * 32 * 32 * 4  # one part has eight pictures' room
    for module in ("judging", "judged_training"):
        monkeypatch.setattr(f"recovery.{module}.PICTURE_BYTES", bound)
    made.clear()
    data, processor = recovery_data(cut.data, recipe=recipe), load_processor(cut.pruned)
    batches = training_batches(sorted(data.train, key=rough_length), processor, recipe).own
    part = part_of("selection", data.train, processor)
    gc.collect()
    alive = sum(x.numel() * x.element_size() for reference in made if (x := reference()) is not None)
    assert picture <= alive <= 2 * bound
    assert len({type(batch.inputs) for batch in (*batches, *part.batches)}) > 1
    for batch in (*batches, *part.batches):
        assert list(batch.inputs) == [name for name, _ in batch.inputs.items()]
    run(cut, tmp_path / "bounded")
    assert weights(tmp_path / "bounded") == weights(tmp_path / "whole") != weights(cut.pruned)


def test_a_bad_learning_rate_leaves_the_start(cut: Cut, tmp_path: Path) -> None:
    report = run(cut, tmp_path / "out", learning_rate=30.0)
    assert report["written"] == "start"
    assert "nearer to the dense model" in report["why"]
    assert report["selection"]["after"] == report["selection"]["before"]
    assert weights(tmp_path / "out") == weights(cut.pruned)
    assert "wrote the weights that it began with" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("kl", "steps", "best_step"),
    [
        ([3.0, 2.5, 2.0, 1.5, 0.9, 0.95, 0.97, 0.99], 8, 5),  # worse than its start until the rate has fallen
        ([0.9, 0.95, 0.97, 0.92, 0.99], 5, 1),
        ([3.0, 3.1, 3.2, 3.3, 3.4], 5, 0),
    ],
)
def test_a_training_ends_when_it_gets_no_better(
    cut: Cut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kl: list[float], steps: int, best_step: int
) -> None:
    own, told = Judge.scores, iter([1.0, *kl, min(kl)])  # of the start, of each evaluation, of the best weights

    def scores(judge: Judge, passes: Passes) -> AnswerScores:
        found = own(judge, passes)
        return replace(found, kl=next(told) * found.tokens)

    monkeypatch.setattr(Judge, "scores", scores)
    report = run(cut, tmp_path / "out", epochs=None, steps=8, evaluations=8, patience=4)
    assert (report["steps"], report["best_step"]) == (steps, best_step)
    assert (report["stopped"] is None) == (steps == 8)
    assert report["written"] == ("recovered" if best_step else "start")


def test_scores_that_are_no_numbers_stop_and_the_report_is_json(
    cut: Cut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Judge.scores
    calls = iter(range(100))

    def scores(judge: Judge, passes: Passes) -> AnswerScores:
        found = own(judge, passes)
        return found if next(calls) < 2 else replace(found, kl=found.kl * float("nan"))

    monkeypatch.setattr(Judge, "scores", scores)
    report = run(cut, tmp_path / "out", evaluations=8)
    assert report["stopped"] == f"scores were not finite numbers after step {report['steps']}"
    assert report["evaluations"][-1]["kl"] is None
    json.dumps(report, allow_nan=False)


def test_a_loss_that_is_no_number_stops_and_names_the_step(
    cut: Cut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, calls = losses.weighted_loss, iter(range(1000))

    def broken(*arguments: Any, **keywords: Any) -> torch.Tensor:
        return own(*arguments, **keywords) * (float("nan") if next(calls) >= 5 else 1.0)

    monkeypatch.setattr(training, "weighted_loss", broken)
    report = run(cut, tmp_path / "out", evaluations=8)
    assert report["stopped"] == f"the loss was not a finite number at step {report['steps'] + 1}"
    assert 0 < report["best_step"] <= report["steps"] < report["of_steps"]
    assert report["written"] == "recovered"
    assert all(bool(torch.isfinite(p).all()) for p in load_model(tmp_path / "out").parameters())
