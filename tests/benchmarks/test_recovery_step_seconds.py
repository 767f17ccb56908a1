"""What steps cost, by a clock that is made up."""

from collections.abc import Iterator
from itertools import accumulate, cycle
from pathlib import Path

import pytest

from benchmarks.recovery_step_seconds import seconds_of_steps
from tests.recovery.conftest import Cut, cut

__all__ = ["cut"]


def test_the_least_step_of_all_turns_counts_but_no_training_s_first(
    cut: Cut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").symlink_to(cut.dense)
    monkeypatch.setattr("benchmarks.recovery_step_seconds.REFERENCE", tmp_path)
    # Trainings of four steps, whose first takes no time by this clock: of sft, of kd-logits, and both again.
    clock: Iterator[float] = accumulate(cycle([0, 9, 5, 7, 0, 6, 8, 4, 0, 3, 9, 9, 0, 5, 5, 5]))
    monkeypatch.setattr("benchmarks.recovery_step_seconds.time.process_time", lambda: next(clock))
    kinds = [("full", "sft"), ("projector", "sft+kd-logits")]
    found = seconds_of_steps({"ours": cut.pruned}, kinds, cut.data)
    assert found == {"seconds": {"ours": {"full sft": 3, "projector sft+kd-logits": 4}}}
