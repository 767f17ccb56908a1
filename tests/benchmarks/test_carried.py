"""What was measured on one machine is read on another, and never over what is newer."""

import io
import tarfile
from pathlib import Path

import pytest

from benchmarks.carried import archive_of, pack, take_up
from benchmarks.steps import Steps, alone_in


def written(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_measurements_are_carried_and_what_is_made_again_is_not(tmp_path: Path) -> None:
    first = written(
        tmp_path / "one" / "axes",
        {
            "metrics-a.jsonl": "1\n",
            "steps/part.json": "{}",
            "lock": "",
            ".hidden.json": "no",
            "smollm2/answers.json": "[]",
            "smollm2/checkpoint/bf16/config.json": "no",
            "smollm2/checkpoint/bf16/model.safetensors": "no",
            "training-all-0/state.safetensors": "no",
            "http/0/training/training.json": "no",
        },
    )
    archive = pack(first, tmp_path)
    assert archive.read_bytes() == pack(first, tmp_path).read_bytes()
    second = tmp_path / "two" / "axes"
    assert take_up(second, tmp_path) == 3
    files = {path.relative_to(second).as_posix() for path in second.rglob("*") if path.is_file()}
    assert files == {"metrics-a.jsonl", "steps/part.json", "smollm2/answers.json", "carried.sha256"}


def test_what_is_newer_stays_and_an_archive_is_read_once(tmp_path: Path) -> None:
    pack(written(tmp_path / "one" / "axes", {"metrics.jsonl": "old\n", "more.jsonl": "old\n"}), tmp_path)
    second = written(tmp_path / "two" / "axes", {"metrics.jsonl": "old\nnew\n"})
    assert take_up(second, tmp_path) == 1
    assert (second / "metrics.jsonl").read_text() == "old\nnew\n"
    (second / "more.jsonl").unlink()  # forgotten: code has changed
    assert take_up(second, tmp_path) == 0
    assert not (second / "more.jsonl").exists()


def test_without_an_archive_nothing_is_read_and_nothing_measured_is_no_archive(tmp_path: Path) -> None:
    assert take_up(tmp_path / "axes", tmp_path) == 0
    with pytest.raises(FileNotFoundError, match="nothing was measured"):
        pack(tmp_path / "axes", tmp_path)


def test_no_file_of_an_archive_leaves_its_folder(tmp_path: Path) -> None:
    work = tmp_path / "deep" / "axes"
    with tarfile.open(archive_of(work, tmp_path), "w:xz") as archive:
        member = tarfile.TarInfo("../outside.json")
        member.size = 2
        archive.addfile(member, io.BytesIO(b"{}"))
    with pytest.raises(ValueError, match="below its root"):
        take_up(work, tmp_path)
    assert not (tmp_path / "deep" / "outside.json").exists()


def test_a_step_that_was_finished_elsewhere_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.carried.FOLDER", tmp_path)
    with alone_in(tmp_path / "one" / "axes"):
        Steps(tmp_path / "one" / "axes" / "steps", renew=True).call("part", ["key"], lambda: {"found": 1})
    pack(tmp_path / "one" / "axes", tmp_path)
    with alone_in(tmp_path / "two" / "axes"):
        steps = Steps(tmp_path / "two" / "axes" / "steps", renew=True)
        step = steps.call("part", ["key"], lambda: pytest.fail("done again"))
    assert step.document == {"found": 1}
