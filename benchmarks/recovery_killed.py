"""Trainings that are killed by SIGKILL in the middle and run again, beside ones that are not; memory of each mode."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from safetensors import safe_open

from benchmarks.recovery_models import MODEL
from recovery.state import STATE_META, STATE_NAME

MODES = ("projector", "lora", "full")
STEPS = 24
_SAVING_OFTEN = """
import recovery.training
from lop.cli import main
recovery.training.STATE_SECONDS = 0.5
main()
"""


def killed(pruned: Path, data: Path, mode: str, folder: Path, lock: int) -> dict[str, Any]:
    """Whether a run that is killed in the middle, and run again, ends with the bytes of one that is not.

    The losses of all steps and the scores of all evaluations must be equal, too: the start, if that is what is written,
    would be after any training. `proves`: it was killed, and had steps to go. Processes inherit the descriptor `lock`.
    """
    outs = [folder / f"{which}-{mode}" for which in ("whole", "killed")]
    command = [sys.executable, "-c", _SAVING_OFTEN, "recover", str(pruned), "--teacher", str(MODEL), "--mode", mode]
    command += ["--data", str(data), "--steps", str(STEPS), "--json", "--out"]
    reports, was_killed, at_step = [], False, 0
    for index, out in enumerate(outs):
        state = out.with_name(f".{out.name}.recovering")
        for left in (out, state):
            if left.exists():
                shutil.rmtree(left)
        if index:
            process = subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL, pass_fds=(lock,))  # noqa: S603
            while process.poll() is None and at_step < STEPS // 4:
                time.sleep(0.05)
                at_step = _steps_in(state / STATE_NAME)
            process.send_signal(signal.SIGKILL)
            was_killed = process.wait() == -signal.SIGKILL
        done = subprocess.run([*command, str(out)], check=True, stdout=subprocess.PIPE, pass_fds=(lock,))  # noqa: S603
        reports.append(json.loads(done.stdout))
    files = [{p.name: p.read_bytes() for p in out.glob("*.safetensors")} for out in outs]
    for out in outs:
        shutil.rmtree(out)
    whole, again = reports
    return {
        "mode": mode,
        "was_killed": was_killed,
        "killed_after_steps": at_step,
        "proves": was_killed and 0 < at_step < whole["steps"],
        "written": whole["written"],
        "is_equal": files[0] == files[1] and all(whole[x] == again[x] for x in ("curve", "evaluations")),
        "peak_memory_bytes": whole["peak_memory_bytes"],
    }


def _steps_in(state: Path) -> int:
    """That the saved state of a training has done; 0 while there is none."""
    if not state.is_file():
        return 0
    with safe_open(state, framework="pt") as file:
        return int(json.loads(file.metadata()[STATE_META])["step"])
