"""`lop apply --method gptq` as a user types it."""

import json
import shutil
from pathlib import Path

import pytest

from lop.commands import apply
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.planning.plan import PruningPlan
from tests.lop.commands.typed import lop_apply
from tests.pruning.cut_models import plan_for, random_ranking
from tests.pruning.packed_models import JOINT, plan_of, save_wide_checkpoint

pytest.importorskip("compressed_tensors")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_wide_checkpoint(tmp_path_factory.mktemp("wide"))


@pytest.fixture
def plan_path(wide: Path, tmp_path: Path) -> Path:
    return write_plan(plan_of(wide, JOINT), wide, tmp_path / "plan.json")


def write_plan(plan: PruningPlan, model: Path, path: Path) -> Path:
    path.write_text(plan.to_json())
    path.with_suffix(".ranking.safetensors").write_bytes(random_ranking(read_anatomy(model)).to_bytes())
    return path


@pytest.mark.parametrize("solves", [False, True], ids=["cut", "solved"])
def test_what_is_in_fewer_bits_is_rounded_on_data(
    solves: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    plan_path: Path,
    wide: Path,
    data: Path,
    spilled: list[int],
) -> None:
    monkeypatch.setattr(apply, "_RESIDENT_BYTES", 0)
    options = ("--reconstruct", data, "--method", "gptq") if solves else ("--data", data)
    assert lop_apply(monkeypatch, plan_path, wide, *options, "--conversations", 3, "--json") == 0
    printed, err = capsys.readouterr()
    found = json.loads(printed)
    assert found["rounding"]["method"] == "gptq"
    assert len(found["rounding"]["projections"]) == 4 + 3 + 3  # an attention and two FFNs
    assert ("reconstruction" in found) is solves
    assert len(spilled) == 1 + solves
    assert all(spilled)  # what waits beyond the bound is on the disk
    inside = PruningPlan.load(plan_path.parent / "out" / "lop_plan.json")
    assert (inside.rounds, inside.reconstructs) == (True, solves)
    tokens = {note["tokens"] for note in found["rounding"]["projections"].values()}
    # The widest of these projections has 32 inputs.
    assert ("weights make up for less than they could" in err) is (min(tokens) < 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "gptq"), "GPTQ needs calibration data"),
        (("--method", "rtn", "--data", "DATA"), "rounding to nearest is without data"),
        (("--data", "DATA", "--reconstruct", "DATA"), "--reconstruct and --data are the same conversations"),
        (("--method", "awq"), "Known are rtn, gptq"),
        (("--method", "none", "--data", "DATA"), "Leave --data out"),
        (("--check", "--data", "DATA"), "Drop --data"),
        (("--check", "--method", "gptq", "--data", "DATA"), "Drop --method and --data"),
        (("--check", "--method", "rtn"), "Drop --method"),
        (("--recover", "DATA", "--data", "DATA"), "weights that are trained must be plain numbers"),
    ],
)
def test_what_contradicts_itself(
    options: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    plan_path: Path,
    wide: Path,
    data: Path,
) -> None:
    given = [data if x == "DATA" else x for x in options]
    assert lop_apply(monkeypatch, plan_path, wide, *given) == 2
    assert message in capsys.readouterr().err
    assert not (plan_path.parent / "out").exists()


def test_what_was_left_plain_is_checked_as_that(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], plan_path: Path, wide: Path
) -> None:
    out = plan_path.parent / "out"
    assert lop_apply(monkeypatch, plan_path, wide, "--method", "none") == 0
    capsys.readouterr()
    assert lop_apply(monkeypatch, plan_path, wide, "--method", "none", "--check", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["weights_bytes"] == sum(x.stat().st_size for x in out.glob("*.safetensors"))
    # The plan itself makes another folder, of weights in fewer bits.
    assert lop_apply(monkeypatch, plan_path, wide, "--check") == 2
    assert "--method none" in capsys.readouterr().err
    shutil.rmtree(out)
    assert lop_apply(monkeypatch, plan_path, wide) == 0
    capsys.readouterr()
    assert lop_apply(monkeypatch, plan_path, wide, "--check", "--method", "none") == 2
    assert "lop_plan.json in the folder must be the plan" in capsys.readouterr().err


def test_a_plan_without_bits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, wide: Path, data: Path
) -> None:
    anatomy = read_anatomy(wide)
    plan = write_plan(plan_for(anatomy, random_ranking(anatomy), [32] * 4), wide, tmp_path / "plan.json")
    assert lop_apply(monkeypatch, plan, wide, "--data", data) == 2
    assert "GPTQ rounds weights in fewer bits, of which the plan must have some" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
