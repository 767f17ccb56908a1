"""Several processes, on CPUs by gloo, against one: equal steps, decisions and weights; killed ones; what is refused."""

import json
import os
import signal
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lop.workflows.compute import wanted_device
from lop.workflows.recovering import check_launched_alone, launched_processes
from pruning.errors import InputError, ProcessError
from recovery.processes import ALONE, Processes
from recovery.recover import state_folder
from recovery.several import Several
from recovery.state import STATE_NAME
from tests.recovery.conftest import Cut
from tests.recovery.joint import Ended, any_lower_kl_is_better, command_line, launched, recovered, together
from tests.recovery.test_recover import check_trained_alike, needs_peft

several = pytest.mark.skipif(not find_spec("accelerate"), reason="no accelerate")


def train(cut: Cut, out: Path, count: int, changes: dict[str, Any], *on_step: Any) -> list[Ended]:
    return together(count, recovered, cut, out, changes, *on_step)


def report_of(ended: list[Ended]) -> dict[str, Any]:
    """Of processes that all came to one end."""
    assert [(process.error, process.code) for process in ended] == [(None, 0)] * len(ended)
    reports = [process.made[0] for process in ended]
    assert all(report == reports[0] for report in reports)
    return dict(reports[0])


def apart(first: Path, second: Path) -> float:
    """The largest difference of two checkpoints' weights."""
    own, other = (load_file(folder / "model.safetensors") for folder in (first, second))
    return max(float((tensor.float() - other[name].float()).abs().max()) for name, tensor in own.items())


@several
@pytest.mark.parametrize(("mode", "count"), [("projector", 2), ("full", 3), pytest.param("lora", 2, marks=needs_peft)])
def test_they_train_as_one_does(
    cut: Cut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, count: int
) -> None:
    any_lower_kl_is_better(monkeypatch)
    changes = {"mode": mode, "is_checkpointed": mode == "lora"}
    one, _ = recovered(ALONE, cut, tmp_path / "one", changes)
    many = report_of(train(cut, tmp_path / "many", count, changes))
    for name in ("written", "why", "steps", "best_step", "stopped", "data", "trained_tokens", "sources"):
        assert many[name] == one[name], name
    assert (one["processes"], many["processes"], len(many["peak_memory_bytes_by_process"])) == (1, count, count)
    assert one["written"] == "recovered"
    assert one["steps"] == 8
    assert np.allclose(one["curve"], many["curve"], rtol=1e-4, atol=0)
    for before, after in zip(one["evaluations"], many["evaluations"], strict=True):
        assert before == pytest.approx(after, rel=1e-4)
    assert apart(tmp_path / "one", tmp_path / "many") < 1e-5
    assert apart(tmp_path / "one", cut.pruned) > 1e-3
    assert not state_folder(tmp_path / "many").exists()


def killed_at_five(processes: Processes, step: int) -> None:
    """The process that is not the main one."""
    if step == 5 and processes.number == 1:
        os.kill(os.getpid(), signal.SIGKILL)


@several
def test_killed_and_run_again_they_end_bit_equal(cut: Cut, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    changes = {"mode": "full"}
    report_of(train(cut, whole, 2, changes))
    main, other = train(cut, killed, 2, changes, killed_at_five)
    assert other.code == -signal.SIGKILL
    assert main.error is not None
    assert main.error[0] == "ProcessError"
    assert "must reach each other until its end" in main.error[1]
    assert not killed.exists()
    assert (state_folder(killed) / STATE_NAME).is_file()
    report = report_of(train(cut, killed, 2, changes))
    assert [point[0] for point in report["curve"]] == list(range(1, 9))
    check_trained_alike(report, killed, whole, cut)


@several
def test_another_number_of_processes_goes_on(cut: Cut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    any_lower_kl_is_better(monkeypatch)
    changes = {"mode": "full"}
    recovered(ALONE, cut, tmp_path / "whole", changes)
    train(cut, tmp_path / "out", 2, changes, killed_at_five)
    steps: list[int] = []
    _, notes = recovered(ALONE, cut, tmp_path / "out", changes, lambda _processes, step: steps.append(step))
    assert steps in ([5, 6, 7, 8], [6, 7, 8])  # the main process may save step 5 before it sees that the other is gone
    assert any("begun by 2 processes and gone on with by 1" in note for note in notes)
    assert apart(tmp_path / "whole", tmp_path / "out") < 1e-5


@several
def test_rows_that_not_every_process_has(cut: Cut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    any_lower_kl_is_better(monkeypatch)
    changes = {"mode": "full", "batch_tokens": 1, "epochs": 1}  # each batch is one row
    recovered(ALONE, cut, tmp_path / "one", changes)
    ended = train(cut, tmp_path / "out", 2, changes)
    report_of(ended)
    assert any("50% are empty" in note and "--batch-tokens" in note for note in ended[0].made[1])
    assert ended[1].made[1] == []
    assert apart(tmp_path / "one", tmp_path / "out") < 1e-5


def on_its_own_machine(cut: Cut, folder: Path) -> tuple[list[str], bool]:
    """As the only process of a machine; what it keeps while it trains, and whether its own output is written."""
    os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    out = folder / os.environ["RANK"] / "out"
    kept: list[str] = []

    def look(_processes: Processes, _step: int) -> None:
        kept[:] = sorted(str(path.relative_to(state_folder(out))) for path in state_folder(out).glob("teacher*/*"))

    with Several(torch.device("cpu")) as processes:
        recovered(processes, cut, out, {"mode": "full", "epochs": 1}, look)
    assert not state_folder(out).exists()
    return kept, out.exists()


@several
def test_machines_share_no_disk(cut: Cut, tmp_path: Path) -> None:
    ended = launched(2, on_its_own_machine, cut, tmp_path)
    assert [process.made for process in ended] == [(["teacher-of-2/0"], True), (["teacher-of-2/1"], False)]


def differing_recipes(processes: Processes, cut: Cut, out: Path) -> None:
    recovered(processes, cut, out, {"mode": "full", "seed": processes.number})


def existing_output(processes: Processes, cut: Cut, out: Path) -> None:
    out.mkdir(exist_ok=True)
    recovered(processes, cut, out, {"mode": "full"})


@several
@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (differing_recipes, "InputError", "process 1 of 2 has others than process 0"),
        (existing_output, "CheckpointError", "must not exist yet"),
    ],
)
def test_what_one_refuses_ends_all_and_is_said_once(cut: Cut, tmp_path: Path, call: Any, error: str, said: str) -> None:
    main, other = together(2, call, cut, tmp_path / "out")
    assert main.error is not None
    assert main.error[0] == error
    assert said in main.error[1]
    assert (other.error, other.code) == (None, 2)
    assert not state_folder(tmp_path / "out").exists()


@several
def test_the_launched_command_speaks_once(cut: Cut, tmp_path: Path) -> None:
    out, settings = tmp_path / "out", ["--mode", "full", "--steps", "2", "--step-tokens", "16", "--json"]
    command = ["recover", str(cut.pruned), "--teacher", str(cut.dense), "--data", str(cut.data), "--out", str(out)]
    main, other = launched(2, command_line, tmp_path, *command, *settings)
    assert other.made == ("", "")
    assert json.loads(main.made[0])["processes"] == 2
    assert "no selection part" in main.made[1]
    again = launched(2, command_line, tmp_path, *command, *settings)
    assert [process.code for process in again] == [2, 2]
    assert "error: the output folder must not exist yet" in (tmp_path / "0.err").read_text()
    assert (tmp_path / "1.err").read_text() == ""


def refuses_slowly(processes: Processes, folder: Path) -> bool:
    """Process 1 fails, and says so a little later; whether that was said when another one ends."""

    def fail() -> None:
        if processes.number == 1:
            raise InputError("rule")

    try:
        processes.together(fail)
    except InputError:
        time.sleep(0.2)
        (folder / "said").touch()
    except SystemExit:
        return (folder / "said").exists()
    return True


@several
def test_others_end_after_the_one_that_says_why(tmp_path: Path) -> None:
    assert [process.made for process in together(2, refuses_slowly, tmp_path)] == [True, True]


def one_is_gone(folder: Path) -> str:
    """Process 1 ends without a word where the others let go of it."""
    with Several(torch.device("cpu")) as processes:
        assert processes.each(processes.number) == [0, 1]
        if processes.number == 1:
            os._exit(3)
        (folder / "written").touch()
    return "said what was written"


@several
def test_one_that_is_gone_in_the_end_takes_no_result_with_it(tmp_path: Path) -> None:
    main, other = launched(2, one_is_gone, tmp_path)
    assert (main.made, main.error, other.code) == ("said what was written", None, 3)


@pytest.mark.parametrize(
    ("error", "expected", "said"),
    [
        (RuntimeError(), ProcessError, "got RuntimeError"),
        (RuntimeError("Connection closed by peer\nat tcp/pair.cc"), ProcessError, r"got Connection closed by peer\)"),
        (torch.OutOfMemoryError("out of memory"), torch.OutOfMemoryError, "out of memory"),
        (torch.AcceleratorError("illegal address", 700), torch.AcceleratorError, "illegal address"),
    ],
)
def test_what_fails_where_they_meet(error: Exception, expected: type[Exception], said: str) -> None:
    processes = Several.__new__(Several)  # without the others
    processes._state = Mock(is_local_main_process=True, **{"wait_for_everyone.side_effect": error})
    with pytest.raises(expected, match=said):
        processes.local_first(lambda: None)


def gradients(processes: Processes) -> tuple[list[list[float] | None], bytes]:
    """Of three parameters, of which all processes have one, all but the first, and none; and of one that is drawn."""
    parameters = [torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter()]
    parameters[0].grad = torch.full((2, 2), 1.0 + processes.number)
    if processes.number:
        parameters[1].grad = torch.arange(3.0)
    processes.sum_gradients(parameters)
    drawn = torch.nn.Parameter(torch.zeros(2**14))
    drawn.grad = torch.randn(2**14, generator=torch.Generator().manual_seed(processes.number))
    processes.sum_gradients([drawn])
    return [None if p.grad is None else p.grad.flatten().tolist() for p in parameters], drawn.grad.numpy().tobytes()


@several
def test_gradients_are_summed_and_absent_ones_stay_absent() -> None:
    found = [process.made for process in together(3, gradients)]
    assert [made[0] for made in found] == [[[6.0] * 4, [0.0, 2.0, 4.0], None]] * 3
    assert len({made[1] for made in found}) == 1  # bit by bit, or the processes' weights would drift apart


def test_a_launch_is_found_and_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "accelerate", None)
        with launched_processes() as processes:
            assert processes is ALONE
        check_launched_alone("lop apply --recover")
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"lop apply --recover runs in one process.*2 processes"):
        check_launched_alone("lop apply --recover")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match=r"every process of a recovery holds the whole model.*ACCELERATE_USE_FSDP"):
        Several(torch.device("cpu"))
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    with pytest.raises(InputError, match=r"GPU of its own number.*cuda:1"):
        Several(torch.device("cuda:1"))
    with pytest.raises(InputError, match=r"needs a GPU of its own.*1 processes, 0 GPUs"):
        Several(torch.device("cuda"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORLD_SIZE", "two"),
        ("WORLD_SIZE", "0"),
        ("RANK", "2"),
        ("LOCAL_RANK", "-1"),
        ("LOCAL_WORLD_SIZE", "3"),
        ("MASTER_PORT", "http"),
    ],
)
def test_what_no_launcher_sets_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    for variable, number in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", name: value}.items():
        monkeypatch.setenv(variable, number)
    with pytest.raises(InputError, match=f"a launcher sets {name} to a number.*{name}={value}"), launched_processes():
        pass


def test_accelerates_cpu_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("LOP_TORCH_DEVICE", raising=False)
    assert wanted_device() == torch.device("cuda")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert wanted_device() == torch.device("cpu")
    monkeypatch.setenv("LOP_TORCH_DEVICE", "cuda")
    assert wanted_device() == torch.device("cuda")
