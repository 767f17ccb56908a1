"""Folders that a job may read, and that it writes."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lop.workflows import job_folders
from lop.workflows.job_folders import folder_below, write_once
from pruning.cutting.streaming.lock import locked_file
from pruning.errors import CheckpointError, InputError
from service.jobs.reporting import JobReporter, JobStopped
from storage.records import JobSignal


def test_folders_are_below_the_roots(tmp_path: Path) -> None:
    root = tmp_path / "models"
    (root / "a" / "b").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "inside").symlink_to(root / "a")
    assert folder_below((tmp_path / "none", root), "a/b") == root / "a" / "b"
    assert folder_below((root,), "inside") == root / "a"
    for name in ("link", "../elsewhere", str(tmp_path / "elsewhere"), "c"):
        with pytest.raises(CheckpointError, match="under one of the worker's roots"):
            folder_below((root,), name)
    with pytest.raises(InputError, match="--model-roots"):
        folder_below((), "a")


class _Reporter(JobReporter):
    """Calls `on_step` at every step, and stores nothing."""

    def __init__(self, on_step: Callable[[str], None]) -> None:
        self._on_step = on_step

    def step(self, done: int, total: int, stage: str, best: float | None = None, loss: float | None = None) -> None:  # noqa: ARG002
        self._on_step(stage)


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(job_folders, "POLL_SECONDS", 0.01)
    return tmp_path / "out"


def writing(out: Path) -> Callable[[], None]:
    """As the real ones do: nothing is there before, one run at a time."""

    def write() -> None:
        if out.exists():
            raise CheckpointError("an output is new")
        with locked_file(out.with_name("lock"), out):
            out.mkdir()

    return write


def test_a_folder_that_is_there_is_not_written_again(out: Path) -> None:
    out.mkdir()
    write_once(out, writing(out), _Reporter(lambda _: None))


@pytest.mark.parametrize("ends_well", [True, False])
def test_a_run_that_writes_the_same_is_waited_for(out: Path, ends_well: bool) -> None:
    held, released = threading.Event(), threading.Event()

    def other() -> None:
        with locked_file(out.with_name("lock"), out):
            held.set()
            released.wait(20)
            if ends_well:
                out.mkdir()

    stages: list[str] = []

    def on_step(stage: str) -> None:
        stages.append(stage)
        if len(stages) == 3:
            released.set()

    thread = threading.Thread(target=other)
    thread.start()
    assert held.wait(20)
    write_once(out, writing(out), _Reporter(on_step))
    thread.join()
    assert out.is_dir()
    assert len(stages) >= 3
    assert set(stages) == {"waiting for another run"}


def test_a_job_that_waits_can_be_cancelled(out: Path) -> None:
    def cancel(_stage: str) -> None:
        raise JobStopped(JobSignal.CANCEL)

    with locked_file(out.with_name("lock"), out), pytest.raises(JobStopped):
        write_once(out, writing(out), _Reporter(cancel))
    assert not out.exists()


def test_what_another_run_has_just_finished_is_no_error(out: Path) -> None:
    def write() -> None:
        out.mkdir()  # by the other, between our look and our own try
        writing(out)()

    write_once(out, write, _Reporter(lambda _: None))


def test_other_errors_are_told(out: Path) -> None:
    def write() -> None:
        raise CheckpointError("the disk is full")

    with pytest.raises(CheckpointError, match="disk is full"):
        write_once(out, write, _Reporter(lambda _: None))
