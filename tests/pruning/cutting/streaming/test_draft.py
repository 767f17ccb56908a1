"""Killed, interrupted, out of space, twice at once: an output folder is whole or absent, and finished work is kept."""

import errno
import io
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.checkpoints.headers import weights_sha256
from pruning.cutting.prune_checkpoint import prune_checkpoint, save_pruned
from pruning.cutting.streaming import shard_writer
from pruning.cutting.streaming.draft import draft_folder
from pruning.errors import CheckpointError
from pruning.planning.plan import PruningPlan
from pruning.planning.ranking import Ranking
from tests.forked import start
from tests.pruning.cut_models import WIDTHS, plan_for, random_ranking
from tests.tiny_models import tiny_model

SHARD = 50_000
"""The tiny output is about 180 kB: four shards."""


@pytest.fixture
def ranking(anatomy: ModelAnatomy) -> Ranking:
    return random_ranking(anatomy)


@pytest.fixture
def plan(anatomy: ModelAnatomy, ranking: Ranking) -> PruningPlan:
    return plan_for(anatomy, ranking, WIDTHS)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stop_after(num_bytes: int) -> Callable[[int, int], None]:
    def stop(done: int, _total: int) -> None:
        if done > num_bytes:
            raise KeyboardInterrupt

    return stop


def whole_shards(folder: Path) -> dict[str, int]:
    """Inodes of the weight files that are finished."""
    return {path.name: path.stat().st_ino for path in sorted(folder.glob("*.safetensors"))}


def cut_until_killed(source: Path, folder: Path) -> None:
    def kill(done: int, _total: int) -> None:
        if done > 130_000:
            os.kill(os.getpid(), signal.SIGKILL)

    plan, ranking = PruningPlan.load(folder / "plan.json"), Ranking.from_bytes((folder / "ranking").read_bytes())
    prune_checkpoint(source, plan, ranking, folder / "out", max_shard_size=50_000, on_bytes=kill)


def test_killed_in_the_middle_it_goes_on(checkpoint: Path, plan: PruningPlan, ranking: Ranking, tmp_path: Path) -> None:
    """In a process of its own, with SIGKILL: no handler of ours runs."""
    (tmp_path / "plan.json").write_text(plan.to_json())
    (tmp_path / "ranking").write_bytes(ranking.to_bytes())
    nowhere = Path(os.devnull)
    process = start(cut_until_killed, checkpoint, tmp_path, stdout=nowhere, stderr=nowhere)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    draft = draft_folder(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    kept = whole_shards(draft)
    assert len(kept) == 2
    assert len(list(draft.glob("*.partial"))) == 1

    seen: list[int] = []
    again = prune_checkpoint(
        checkpoint, plan, ranking, tmp_path / "out", max_shard_size=SHARD, on_bytes=lambda done, _: seen.append(done)
    )
    assert seen[0] == sum((again / name).stat().st_size for name in kept)
    assert kept.items() <= whole_shards(again).items()
    at_once = prune_checkpoint(checkpoint, plan, ranking, tmp_path / "at once", max_shard_size=SHARD)
    assert files_of(again) == files_of(at_once)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["at once", "out", "plan.json", "ranking"]


def test_interrupted_it_goes_on(checkpoint: Path, plan: PruningPlan, ranking: Ranking, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for num_bytes in (10_000, 60_000, 120_000):
        with pytest.raises(KeyboardInterrupt):
            prune_checkpoint(checkpoint, plan, ranking, out, max_shard_size=SHARD, on_bytes=stop_after(num_bytes))
        assert not out.exists()
    kept = whole_shards(draft_folder(out))
    assert len(kept) == 2
    prune_checkpoint(checkpoint, plan, ranking, out, max_shard_size=SHARD)
    assert kept.items() <= whole_shards(out).items()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_shard_that_is_not_whole_is_written_again(
    checkpoint: Path, plan: PruningPlan, ranking: Ranking, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        prune_checkpoint(checkpoint, plan, ranking, out, max_shard_size=SHARD, on_bytes=stop_after(120_000))
    first, second = (draft_folder(out) / name for name in whole_shards(draft_folder(out)))
    first.write_bytes(first.read_bytes()[:-1])
    (draft_folder(out) / "tokenizer_that_is_gone.json").write_text("{}")
    kept = second.stat().st_ino
    prune_checkpoint(checkpoint, plan, ranking, out, max_shard_size=SHARD)
    at_once = prune_checkpoint(checkpoint, plan, ranking, tmp_path / "at once", max_shard_size=SHARD)
    assert files_of(out) == files_of(at_once)
    assert (out / second.name).stat().st_ino == kept


@pytest.mark.parametrize("change", ["plan", "ranking", "shards", "source"])
def test_a_draft_of_something_else_is_begun_anew(
    checkpoint: Path, anatomy: ModelAnatomy, plan: PruningPlan, ranking: Ranking, tmp_path: Path, change: str
) -> None:
    source = Path(shutil.copytree(checkpoint, tmp_path / "source"))
    out, shard = tmp_path / "out", SHARD
    with pytest.raises(KeyboardInterrupt):
        prune_checkpoint(source, plan, ranking, out, max_shard_size=shard, on_bytes=stop_after(120_000))
    if change == "plan":
        plan = plan_for(anatomy, ranking, [8, 16, 40, 48])
    elif change == "ranking":
        ranking = Ranking(
            tuple(order[::-1].copy() for order in ranking.ffn), ranking.fingerprint, None, ranking.kv_groups
        )
        plan = plan_for(anatomy, ranking, WIDTHS)
    elif change == "shards":
        shard = SHARD + 1
    else:  # another fine-tune, of the same shapes
        first = sorted(source.glob("*.safetensors"))[0]
        content = bytearray(first.read_bytes())
        content[-100:] = bytes(100)
        first.write_bytes(content)
        os.utime(first, ns=(1, 1))
    seen: list[int] = []
    prune_checkpoint(source, plan, ranking, out, max_shard_size=shard, on_bytes=lambda done, _: seen.append(done))
    assert seen[0] == 0
    at_once = prune_checkpoint(source, plan, ranking, tmp_path / "at once", max_shard_size=shard)
    assert files_of(out) == files_of(at_once)


def test_what_is_in_the_drafts_place_and_none_of_ours_is_left_alone(
    checkpoint: Path, plan: PruningPlan, ranking: Ranking, tmp_path: Path
) -> None:
    draft = draft_folder(tmp_path / "out")
    draft.mkdir()
    (draft / "precious").write_text("x")
    with pytest.raises(CheckpointError, match=rf"must be a draft.*Remove {draft}"):
        prune_checkpoint(checkpoint, plan, ranking, tmp_path / "out")
    assert (draft / "precious").read_text() == "x"


@pytest.mark.parametrize("content", ["precious", '{"my": "state"}', "[1]", "null"])
def test_a_state_that_is_none_of_ours_is_left_alone(
    checkpoint: Path, plan: PruningPlan, ranking: Ranking, tmp_path: Path, content: str
) -> None:
    state = tmp_path / ".out.part.json"
    state.write_text(content)
    with pytest.raises(CheckpointError, match=rf"no state of a draft.*Remove {state}"):
        prune_checkpoint(checkpoint, plan, ranking, tmp_path / "out")
    assert state.read_text() == content


def test_a_state_that_is_a_link_is_not_followed(
    checkpoint: Path, plan: PruningPlan, ranking: Ranking, tmp_path: Path
) -> None:
    (tmp_path / "precious").write_text("{}")
    (tmp_path / ".out.part.json").symlink_to(tmp_path / "precious")
    with pytest.raises(CheckpointError, match="must be a draft"):
        prune_checkpoint(checkpoint, plan, ranking, tmp_path / "out")
    assert (tmp_path / "precious").read_text() == "{}"


def test_two_runs_at_once(checkpoint: Path, plan: PruningPlan, ranking: Ranking, tmp_path: Path) -> None:
    refused: list[str] = []

    def run_another(_done: int, _total: int) -> None:
        if not refused:
            with pytest.raises(CheckpointError, match="one run at a time") as caught:
                prune_checkpoint(checkpoint, plan, ranking, tmp_path / "out")
            refused.append(str(caught.value))
            # Another place is another matter.
            prune_checkpoint(checkpoint, plan, ranking, tmp_path / "other")

    prune_checkpoint(checkpoint, plan, ranking, tmp_path / "out", on_bytes=run_another)
    assert str(tmp_path / "out") in refused[0]
    assert files_of(tmp_path / "out") == files_of(tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def lop_with_little_room(arguments: list[str]) -> None:
    from lop.cli import main

    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    sys.argv = ["lop", *arguments]
    main()


def test_a_disk_that_fills_up(
    checkpoint: Path, plan: PruningPlan, ranking: Ranking, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A limit on a file's size stands for a full disk: `write` writes a part, then fails."""
    (tmp_path / "plan.json").write_text(plan.to_json())
    (tmp_path / "plan.ranking.safetensors").write_bytes(ranking.to_bytes())
    before = weights_sha256(checkpoint)
    arguments = ["apply", "--plan", tmp_path / "plan.json", "--model", checkpoint, "--out", tmp_path / "out"]
    said = tmp_path_factory.mktemp("said")
    out, err = said / "out", said / "err"
    process = start(lop_with_little_room, [str(x) for x in arguments], stdout=out, stderr=err)
    process.join()
    assert (process.exitcode, out.read_text()) == (2, "")
    assert err.read_text().startswith("error: the disk must have room for the pruned checkpoint")
    assert err.read_text().count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "plan.ranking.safetensors"]
    assert weights_sha256(checkpoint) == before


@pytest.mark.parametrize(
    ("place", "code", "message"),
    [
        ("output", errno.ENOSPC, r"must have room.*Free some room\. What is finished is in .*run the same command"),
        ("output", errno.EIO, r"output must be writable.*What is finished is in .*run the same command"),
        ("source", errno.ESTALE, r"weight file must be readable.*What is finished is in .*run the same command"),
    ],
)
def test_what_is_finished_when_the_disk_stops_it_is_gone_on_with(
    checkpoint: Path,
    plan: PruningPlan,
    ranking: Ranking,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    code: int,
    message: str,
) -> None:
    written = 0

    def count(done: int, _total: int) -> None:
        nonlocal written
        written = done

    def stops(original: Callable[..., Any]) -> Callable[..., Any]:
        def stopping(*arguments: Any) -> Any:
            if written > 120_000:
                raise OSError(code, os.strerror(code))
            return original(*arguments)

        return stopping

    if place == "output":
        monkeypatch.setattr(shard_writer, "_write", stops(shard_writer._write))
    else:
        monkeypatch.setattr("pruning.checkpoints.blocks.FileIO", stops(io.FileIO))
    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match=message):
        prune_checkpoint(checkpoint, plan, ranking, out, max_shard_size=SHARD, on_bytes=count)
    monkeypatch.undo()
    kept = whole_shards(draft_folder(out))
    assert len(kept) == 2
    prune_checkpoint(checkpoint, plan, ranking, out, max_shard_size=SHARD)
    assert kept.items() <= whole_shards(out).items()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


class TestSavingAModel:
    @pytest.fixture
    def dense(self, plan: PruningPlan) -> PruningPlan:
        return plan_for_dense(plan)

    def test_a_disk_that_fills_up(self, dense: PruningPlan, tmp_path: Path) -> None:
        """The weights are written by a library in Rust, which says so in its own words."""
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            with pytest.raises(CheckpointError, match=r"must have room for the pruned checkpoint.*Nothing was left"):
                save_pruned(tiny_model(), dense, tmp_path / "above" / "out")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert list(tmp_path.iterdir()) == []

    def test_room_is_looked_for_first(
        self, dense: PruningPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=2**20))
        with pytest.raises(CheckpointError, match="must have room"):
            save_pruned(tiny_model(), dense, tmp_path / "above" / "out")
        assert list(tmp_path.iterdir()) == []

    def test_what_a_killed_run_left_goes(
        self, dense: PruningPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, out = tiny_model(), tmp_path / "out"

        def killed(*_arguments: object, **_options: object) -> None:
            (draft_folder(out) / "half.safetensors").write_text("x")
            raise KeyboardInterrupt

        monkeypatch.setattr(model, "save_pretrained", killed)
        with pytest.raises(KeyboardInterrupt):
            save_pruned(model, dense, out)
        monkeypatch.undo()
        assert (draft_folder(out) / "half.safetensors").exists()
        save_pruned(model, dense, out)
        assert not (out / "half.safetensors").exists()
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_two_at_once(self, dense: PruningPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model, out = tiny_model(), tmp_path / "out"
        original = model.save_pretrained

        def another(*arguments: Any, **options: Any) -> None:
            with pytest.raises(CheckpointError, match="one run at a time"):
                save_pruned(tiny_model(), dense, out)
            original(*arguments, **options)

        monkeypatch.setattr(model, "save_pretrained", another)
        assert (save_pruned(model, dense, out) / "config.json").is_file()


class TestBeforeTheFirstByte:
    def test_room(
        self,
        checkpoint: Path,
        plan: PruningPlan,
        ranking: Ranking,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        out, needed = tmp_path / "above" / "out", plan.achieved.disk_bytes
        monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=needed))
        with pytest.raises(CheckpointError, match=rf"must have room.*{needed:,} free"):
            prune_checkpoint(checkpoint, plan, ranking, out)
        assert list(tmp_path.iterdir()) == []
        monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=needed + 2**21))
        prune_checkpoint(checkpoint, plan, ranking, out)

    def test_room_is_needed_for_what_is_missing_only(
        self,
        checkpoint: Path,
        plan: PruningPlan,
        ranking: Ranking,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        out = tmp_path / "out"
        with pytest.raises(KeyboardInterrupt):
            prune_checkpoint(checkpoint, plan, ranking, out, max_shard_size=SHARD, on_bytes=stop_after(120_000))
        kept = whole_shards(draft_folder(out))
        monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=2**20))
        with pytest.raises(CheckpointError, match="must have room"):
            prune_checkpoint(checkpoint, plan, ranking, out, max_shard_size=SHARD)
        assert whole_shards(draft_folder(out)) == kept  # worth keeping until there is room
        rest = plan.achieved.disk_bytes - 2 * SHARD * 9 // 10 + 2**20 + 100_000
        partial = draft_folder(out) / "model-00003.safetensors.partial"
        partial.write_bytes(b"half")

        def usage(_path: Path) -> SimpleNamespace:
            return SimpleNamespace(free=0 if partial.exists() else rest)

        monkeypatch.setattr("shutil.disk_usage", usage)
        prune_checkpoint(checkpoint, plan, ranking, out, max_shard_size=SHARD)

    @pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
    def test_an_output_that_exists(
        self, checkpoint: Path, plan: PruningPlan, ranking: Ranking, tmp_path: Path, kind: str
    ) -> None:
        out = tmp_path / "out"
        if kind == "folder":
            out.mkdir()
        elif kind == "file":
            out.touch()
        else:
            out.symlink_to(tmp_path / "nowhere")
        with pytest.raises(CheckpointError, match="must not exist yet"):
            prune_checkpoint(checkpoint, plan, ranking, out)
        with pytest.raises(CheckpointError, match="must not exist yet"):
            save_pruned(tiny_model(), plan_for_dense(plan), out)
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_an_output_inside_the_model(
        self, checkpoint: Path, plan: PruningPlan, ranking: Ranking, tmp_path: Path
    ) -> None:
        (tmp_path / "link").symlink_to(checkpoint)
        for out in (checkpoint / "out", checkpoint / "a" / "b", tmp_path / "link" / "out"):
            with pytest.raises(CheckpointError, match="outside of the model's"):
                prune_checkpoint(checkpoint, plan, ranking, out)
        with pytest.raises(CheckpointError, match="must not exist yet"):
            prune_checkpoint(checkpoint, plan, ranking, checkpoint)
        assert not (checkpoint / "out").exists()

    def test_an_output_where_nothing_can_be_written(
        self, checkpoint: Path, plan: PruningPlan, ranking: Ranking, tmp_path: Path
    ) -> None:
        (tmp_path / "file").touch()
        for out in (tmp_path / "file" / "out", Path("/proc/self/out/x")):
            with pytest.raises(CheckpointError, match="output folder must be writable"):
                prune_checkpoint(checkpoint, plan, ranking, out)

    def test_folders_above_are_made(
        self, checkpoint: Path, plan: PruningPlan, ranking: Ranking, tmp_path: Path
    ) -> None:
        out = prune_checkpoint(checkpoint, plan, ranking, tmp_path / "a" / "b" / "out")
        assert json.loads((out / "config.json").read_text())["model_type"] == "llava"


def plan_for_dense(plan: PruningPlan) -> PruningPlan:
    """A plan that the dense tiny model keeps to."""
    return plan.model_copy(update={"layers": ()})
