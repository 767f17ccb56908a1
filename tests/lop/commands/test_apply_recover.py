"""`lop apply --recover`: the same as `lop apply` and then `lop recover`, in one command."""

import json
from pathlib import Path

import pytest

from recovery import training
from recovery.recover import state_folder
from recovery.scores import AnswerScores
from recovery.training import Training
from tests.lop.commands.typed import typed
from tests.recovery.conftest import Cut
from tests.recovery.conftest import cut as cut

HOW = (
    "--mode",
    "full",
    "--epochs",
    "4",
    "--learning-rate",
    "3e-3",
    "--step-tokens",
    "16",
    "--batch-tokens",
    "200",
    "--loss",
    "kd-logits+kd-hidden",
)


@pytest.fixture
def plan(cut: Cut, tmp_path: Path) -> Path:
    """A plan file, with its ranking beside it."""
    path = tmp_path / "plans" / "plan.json"
    path.parent.mkdir()
    path.write_text(cut.plan.to_json())
    path.with_name("plan.ranking.safetensors").write_bytes(cut.ranking.to_bytes())
    return path


@pytest.fixture(autouse=True)
def _few_answers_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four answers of the selection part prove nothing; here a lower KL is enough."""
    monkeypatch.setattr("recovery.report.beats", lambda after, before: after.mean_kl < before.mean_kl)
    monkeypatch.setattr(AnswerScores, "accuracy", property(lambda _self: 0.0))


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_interrupted_and_run_again_it_is_what_two_commands_give(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cut: Cut, plan: Path, tmp_path: Path
) -> None:
    out, twice = tmp_path / "out" / "recovered", tmp_path / "twice"
    apply = ("apply", "--plan", plan, "--model", cut.dense, "--out", out, "--recover", cut.data, *HOW, "--json")
    take_step = Training._take_step
    steps: list[int] = []

    def interrupted(self: Training, schedule: object, step: int) -> float | None:
        steps.append(step)
        if steps == [0, 1, 2, 3]:
            raise KeyboardInterrupt
        return take_step(self, schedule, step)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "STATE_SECONDS", 0.0)
    monkeypatch.setattr(Training, "_take_step", interrupted)
    assert typed(monkeypatch, *apply) == 130
    assert f"the training is in {state_folder(out)}" in capsys.readouterr().err
    (kept,) = out.parent.glob(".recovered.cut-*")
    assert weights(kept) == weights(cut.pruned)
    monkeypatch.setattr("pruning.cutting.prune_checkpoint.output_tensors", None)  # it is not cut again
    assert typed(monkeypatch, *apply) == 0
    assert steps[:5] == [0, 1, 2, 3, 3]
    printed = json.loads(capsys.readouterr().out)
    assert (printed["out"], printed["recovery"]["written"]) == (str(out), "recovered")
    assert printed["weights_bytes"] == cut.plan.achieved.disk_bytes
    assert [path.name for path in out.parent.iterdir()] == ["recovered"]

    assert (
        typed(monkeypatch, "recover", cut.pruned, "--teacher", cut.dense, "--data", cut.data, "--out", twice, *HOW) == 0
    )
    assert weights(out) == weights(twice) != weights(cut.pruned)


def test_what_is_wrong_is_said_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cut: Cut, plan: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out" / "recovered"
    apply = ("apply", "--plan", plan, "--model", cut.dense, "--out", out)
    for options, message in (
        (("--mode", "full"), "options of a recovery are of --recover"),
        (("--recover", cut.data, "--check"), "Drop --recover"),
        (("--recover", cut.data, "--loss", "mse"), "a loss is a sum of sft"),
        (("--recover", cut.data, "--hidden-layer", "9"), "numbered 0..3"),
        (("--recover", tmp_path / "none.json"), "none.json"),
        (("--recover", cut.data, "--validation", cut.data), "must be different conversations"),
        (("--recover", cut.data, "--mode", "full", "--model", cut.pruned), "the teacher is the dense model"),
    ):
        assert typed(monkeypatch, *apply, *options) == 2
        assert message in capsys.readouterr().err
        assert not out.parent.exists()


def test_bits_are_refused_before_anything_is_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cut: Cut, plan: Path, tmp_path: Path
) -> None:
    document = json.loads(plan.read_text())
    document["layers"][0]["attention"] = {"units": 2, "bits": 8}
    plan.write_text(json.dumps(document))
    out = tmp_path / "out" / "recovered"
    assert typed(monkeypatch, "apply", "--plan", plan, "--model", cut.dense, "--out", out, "--recover", cut.data) == 2
    assert "must be plain numbers" in capsys.readouterr().err
    assert not out.parent.exists()
