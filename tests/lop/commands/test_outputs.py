"""What commands print where the terminal has few characters, and outputs whose names are as long as can be."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lop.cli import main
from lop.console.pictures import check_picture
from pruning.atomic_file import beside, draft_of, replace_file
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.cutting import prune_checkpoint
from pruning.cutting.gguf.output_files import check_outputs
from pruning.cutting.streaming import shard_writer
from pruning.cutting.streaming.place import check_place
from pruning.errors import CheckpointError, InputError
from tests.pruning.cut_models import WIDTHS, plan_for, random_ranking


def run(*words: object) -> int:
    """`lop` in this process: the exit code."""
    before = sys.argv
    sys.argv = ["lop", *map(str, words)]
    try:
        main()
    except SystemExit as error:
        return int(error.code or 0)
    finally:
        sys.argv = before
    return 0


def named(length: int, ending: str = "") -> str:
    return "n" * (length - len(ending)) + ending


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
@pytest.mark.parametrize(
    "words", [("model", "list"), ("device", "list"), ("search", "--help"), ("plan", "-m", "tiny", "-s", "0.3")]
)
def test_any_encoding_will_do(
    monkeypatch: pytest.MonkeyPatch, database: str, words: tuple[str, ...], encoding: str
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LOP_DATABASE_URL", database)
    stdout, stderr = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "stderr", stderr)
    assert run(*words) == 0
    stdout.flush()
    assert len(stdout.buffer.getvalue().decode(encoding)) > 100


def test_a_real_process_in_ascii(database: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LOP_DATABASE_URL": database}
    command = [sys.executable, "-m", "lop.cli", "plan", "-m", "\u00fc\u4e2d", "-s", "0.3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith(r"error: no model is stored under this id (got '\xfc\u4e2d')")


def test_json_stays_json_in_ascii(monkeypatch: pytest.MonkeyPatch, database: str) -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    assert run("plan", "-m", "tiny", "-s", "0.3", "--database", database, "--json") == 0
    stdout.flush()
    assert json.loads(stdout.buffer.getvalue())["model"]["id"] == "tiny"


@pytest.mark.parametrize("letter", ["n", "ü", "中"])
def test_neighbours_of_the_longest_names(tmp_path: Path, letter: str) -> None:
    name = letter * (255 // len(letter.encode()))
    path = tmp_path / name
    assert path.with_name("a") != beside(path, ".part") == beside(path, ".part")
    assert beside(path, ".part") != beside(path.with_name(name[:-1] + "x"), ".part")
    replace_file(path, b"content")
    assert [x.name for x in tmp_path.iterdir()] == [name]
    assert beside(tmp_path / "short", ".part").name == ".short.part"


def test_two_containers_write_drafts_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a process 1, and they may share a volume."""
    monkeypatch.setattr("os.getpid", lambda: 1)
    drafts = set()
    for host in ("lop-worker-6c9f-x2x4z", "lop-worker-6c9f-8k2mq", "h" * 64):
        monkeypatch.setattr("socket.gethostname", lambda host=host: host)
        drafts |= {draft_of(tmp_path / "short"), draft_of(tmp_path / ("n" * 255))}
    assert len(drafts) == 6
    assert all(draft.parent == tmp_path and len(draft.name) <= 255 for draft in drafts)


def test_a_plan_and_a_checkpoint_with_the_longest_names(
    tmp_path: Path, database: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, out = tmp_path / named(255, ".json"), tmp_path / named(255)
    assert run("plan", "-m", "tiny", "-s", "0.3", "--database", database, "--out", plan) == 0
    assert run("apply", "--plan", plan, "--model", checkpoint, "--out", out) == 0
    assert (out / "config.json").is_file()
    assert not [x for x in tmp_path.iterdir() if x.name.startswith(".")]
    assert "Traceback" not in capsys.readouterr().err


def test_a_draft_of_the_longest_name_is_gone_on_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path
) -> None:
    anatomy = read_anatomy(checkpoint)
    ranking = random_ranking(anatomy)
    plan, out = plan_for(anatomy, ranking, WIDTHS), tmp_path / named(255)
    write = shard_writer.write_shard

    def stopped(path: Path, *args: object, **kwargs: object) -> None:
        if written:
            raise OSError(28, "No space left on device")
        written.append(path)
        write(path, *args, **kwargs)  # type: ignore[arg-type]

    written: list[Path] = []
    monkeypatch.setattr(prune_checkpoint, "write_shard", stopped)
    with pytest.raises(CheckpointError, match="run the same command to go on"):
        prune_checkpoint.prune_checkpoint(checkpoint, plan, ranking, out, max_shard_size=60_000)
    monkeypatch.setattr(prune_checkpoint, "write_shard", write)
    done: list[int] = []
    prune_checkpoint.prune_checkpoint(
        checkpoint, plan, ranking, out, max_shard_size=60_000, on_bytes=lambda so_far, _: done.append(so_far)
    )
    assert done[0] > 0
    assert (out / "config.json").is_file()


def test_names_that_are_too_long_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="255 bytes at most"):
        check_place(tmp_path / named(256))
    with pytest.raises(CheckpointError, match="255 bytes at most"):
        check_outputs([tmp_path / named(256, ".gguf")])
    for name in (named(256, ".png"), "ü" * 126 + ".png"):
        with pytest.raises(InputError, match="255 bytes at most"):
            check_picture(tmp_path / name)
    check_picture(tmp_path / named(255, ".png"))
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match="can be written"):
        check_picture(tmp_path / "folder.png")


@pytest.mark.parametrize(
    "words",
    [("model", "add", "x", named(300), "--weights-only"), ("db", "upgrade", "--database", f"sqlite:///{named(300)}"),
     ("plan", "-m", "tiny", "-s", "0.3", "--out", named(300)), ("evaluate", named(300), "--data", "x"),
     ("apply", "--plan", named(300), "--model", "x", "--out", "y")],
    ids=lambda words: words[0],
)  # fmt: skip
def test_paths_that_the_system_refuses_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: str, capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOP_DATABASE_URL", database)
    assert run(*words) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
