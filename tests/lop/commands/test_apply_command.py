"""`lop apply` as a user types it: sizes of shards, what is printed, and what an interrupt leaves."""

import json
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lop.cli import main
from lop.commands import apply
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.headers import weights_sha256
from pruning.cutting import prune_checkpoint, reconstruct_checkpoint
from pruning.cutting.streaming.draft import draft_folder
from pruning.cutting.streaming.solved import solved_folder
from pruning.planning.plan import PruningPlan
from tests.lop.commands.typed import lop_apply
from tests.pruning.cut_models import WIDTHS, kept_groups, plan_for, random_ranking
from tests.tiny_models import save_tiny_checkpoint


@pytest.fixture
def plan_path(checkpoint: Path, tmp_path: Path) -> Path:
    """A plan file, and its ranking beside it as `lop plan --out` writes them."""
    anatomy = read_anatomy(checkpoint)
    ranking = random_ranking(anatomy)
    path = tmp_path / "plan.json"
    path.write_text(plan_for(anatomy, ranking, WIDTHS, kept_groups(anatomy)).to_json())
    (tmp_path / "plan.ranking.safetensors").write_bytes(ranking.to_bytes())
    return path


def test_shards_of_a_size(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], plan_path: Path, checkpoint: Path
) -> None:
    assert lop_apply(monkeypatch, plan_path, checkpoint, "--max-shard-size", "50kB", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    files = list((plan_path.parent / "out").glob("*.safetensors"))
    assert printed["weight_files"] == len(files) > 1
    assert printed["weights_bytes"] == sum(path.stat().st_size for path in files)
    assert all(path.stat().st_size < 60_000 for path in files)


def test_a_size_that_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], plan_path: Path, checkpoint: Path
) -> None:
    assert lop_apply(monkeypatch, plan_path, checkpoint, "--max-shard-size", "five") == 2
    assert capsys.readouterr().err.startswith("error: a size is a number above zero")
    assert not (plan_path.parent / "out").exists()


def test_an_interrupt_says_where_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], plan_path: Path, checkpoint: Path
) -> None:
    def interrupted(*_arguments: object, **_keywords: object) -> None:
        raise KeyboardInterrupt

    draft = draft_folder(plan_path.parent / "out")
    monkeypatch.setattr(prune_checkpoint, "copy_companions", interrupted)
    assert lop_apply(monkeypatch, plan_path, checkpoint) == 130
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert printed.err.startswith(f"error: interrupted; what is finished is in {draft}")
    assert draft.is_dir()
    monkeypatch.undo()
    assert lop_apply(monkeypatch, plan_path, checkpoint, "--json") == 0
    assert not draft.exists()


def test_an_interrupt_before_there_is_a_draft_is_any_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], plan_path: Path, checkpoint: Path
) -> None:
    def interrupted(_path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prune_checkpoint, "stored_tensors", interrupted)
    assert lop_apply(monkeypatch, plan_path, checkpoint) == 130
    assert capsys.readouterr().err.startswith("error: interrupted; what was stored is intact")


def test_a_terminal_sees_bytes_and_speed(plan_path: Path, checkpoint: Path) -> None:
    leader, follower = pty.openpty()
    words = ["apply", "--plan", plan_path, "--model", checkpoint, "--out", plan_path.parent / "out", "--json"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(
        [sys.executable, "-m", "lop.cli", *map(str, words)], stdout=subprocess.PIPE, stderr=follower, env=environment
    ) as process:
        os.close(follower)
        shown = b""
        while True:
            try:
                shown += (read := os.read(leader, 2**16))
            except OSError:  # Linux says so of a terminal whose other end is closed
                break
            if not read:
                break
        out, _ = process.communicate()
    os.close(leader)
    assert process.returncode == 0, shown
    assert b"kB" in shown
    assert b"/s" in shown
    assert json.loads(out)["weight_files"] == 1


def with_weights_of(plan_path: Path, folder: Path) -> None:
    """The plan as the planner makes it: it says which weights were ranked."""
    document = json.loads(plan_path.read_text())
    document["model"]["weights_sha256"] = weights_sha256(folder)
    plan_path.write_text(json.dumps(document))


def test_the_weights_that_were_ranked_are_applied_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], plan_path: Path, checkpoint: Path
) -> None:
    with_weights_of(plan_path, checkpoint)
    assert lop_apply(monkeypatch, plan_path, checkpoint) == 0
    assert capsys.readouterr().err == ""


def test_other_weights_of_the_same_shapes_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], plan_path: Path, checkpoint: Path
) -> None:
    with_weights_of(plan_path, checkpoint)
    other = save_tiny_checkpoint(plan_path.parent / "other", seed=1)
    assert lop_apply(monkeypatch, plan_path, other) == 0
    warning = capsys.readouterr().err
    assert warning.startswith("warning: ")
    assert weights_sha256(checkpoint)[:12] in warning
    assert weights_sha256(other)[:12] in warning
    assert warning.count("\n") == 1
    assert (plan_path.parent / "out" / "config.json").is_file()


def test_a_failed_run_does_not_wait_for_the_digest(
    monkeypatch: pytest.MonkeyPatch, plan_path: Path, checkpoint: Path
) -> None:
    with_weights_of(plan_path, checkpoint)

    def broken(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prune_checkpoint, "write_shard", broken)
    before = set(threading.enumerate())
    assert lop_apply(monkeypatch, plan_path, checkpoint) == 2
    assert not [thread for thread in set(threading.enumerate()) - before if "ThreadPool" in thread.name]


def test_the_planner_says_which_weights_were_ranked(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path, database: str, tmp_path: Path
) -> None:
    words = ["lop", "plan", "-m", "tiny", "-s", "0.3", "--database", database, "--out", str(tmp_path / "p.json")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code
    assert PruningPlan.load(tmp_path / "p.json").model.weights_sha256 == weights_sha256(checkpoint)


def test_a_ranking_that_is_not_beside_the_plan_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], plan_path: Path, checkpoint: Path
) -> None:
    ranking = plan_path.with_name("plan.ranking.safetensors")
    ranking.rename(plan_path.with_name("elsewhere.safetensors"))
    for url, also in ((None, ""), ("/v1/models/tiny/ranking", ""), ("http://127.0.0.1:9/v1/x", "must answer")):
        document = json.loads(plan_path.read_text())
        document["ranking"]["url"] = url
        plan_path.write_text(json.dumps(document))
        assert lop_apply(monkeypatch, plan_path, checkpoint) == 2
        message = capsys.readouterr().err
        assert f"{ranking} is not there" in message
        assert "--ranking FILE" in message
        assert also in message
    assert lop_apply(monkeypatch, plan_path, checkpoint, "--ranking", plan_path.with_name("elsewhere.safetensors")) == 0


def test_what_is_kept_is_solved_anew(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], plan_path: Path, checkpoint: Path, data: Path
) -> None:
    assert lop_apply(monkeypatch, plan_path, checkpoint, "--conversations", 3) == 2
    assert "a number of conversations is of --reconstruct" in capsys.readouterr().err
    options = ("--reconstruct", data, "--conversations", 3, "--json")
    assert lop_apply(monkeypatch, plan_path, checkpoint, *options) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)["reconstruction"]
    assert found["projections"] == 6  # three FFNs and three attentions are cut
    assert 0 <= found["lost_output"] <= found["lost_output_without"]
    assert PruningPlan.load(plan_path.parent / "out" / "lop_plan.json").reconstructs
    # Three conversations have some thirty tokens each, the widest projection that is cut keeps 40 inputs.
    assert found["tokens"] > 40
    assert "without damping" not in err


def test_fewer_tokens_than_channels_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path
) -> None:
    """Of two conversations, for 120 of 128 channels of one layer; an attention, which is cut too, has enough."""
    folder = save_tiny_checkpoint(tmp_path / "model", ffn_width=128)
    anatomy = read_anatomy(folder)
    ranking = random_ranking(anatomy)
    (tmp_path / "plan.json").write_text(plan_for(anatomy, ranking, [128, 120, 128, 128], [2, 2, 1, 2]).to_json())
    (tmp_path / "plan.ranking.safetensors").write_bytes(ranking.to_bytes())
    options = ("--reconstruct", data, "--conversations", 2, "--json")
    assert lop_apply(monkeypatch, tmp_path / "plan.json", folder, *options) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)["reconstruction"]
    assert 16 < found["tokens"] < 120
    assert f"warning: {found['tokens']} calibration tokens for up to 120 inputs of a projection: without damping" in err
    assert "with it 1 of 2 projections gain less than they could" in err


def test_what_waits_beyond_a_bound_is_on_the_disk_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, plan_path: Path, checkpoint: Path, data: Path, spilled: list[int]
) -> None:
    written = []
    for bound in (apply._RESIDENT_BYTES, 0):
        monkeypatch.setattr(apply, "_RESIDENT_BYTES", bound)
        assert lop_apply(monkeypatch, plan_path, checkpoint, "--reconstruct", data) == 0
        out = plan_path.parent / "out"
        written.append({path.name: path.read_bytes() for path in out.glob("*.safetensors")})
        out.rename(plan_path.parent / f"out-{bound}")
    assert spilled[0] == 0 < spilled[1]
    assert written[0] == written[1]


def test_an_interrupt_of_the_solve_says_where_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], plan_path: Path, checkpoint: Path, data: Path
) -> None:
    def interrupted(*_arguments: object, **_keywords: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(reconstruct_checkpoint, "reconstruct", interrupted)
    assert lop_apply(monkeypatch, plan_path, checkpoint, "--reconstruct", data) == 130
    assert f"what is finished is in {solved_folder(plan_path.parent / 'out')}" in capsys.readouterr().err
