"""What the recovery benchmark leaves behind when one of its parts fails."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import recovery
from benchmarks.recovery_bench import STEPS, Bench
from tests.benchmarks.test_recovery_figures import row


def test_a_part_that_fails_does_not_lose_those_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, fails = tmp_path / "results", True

    def goal(bench: Bench) -> None:
        bench.rows.append(row(86, 96, part="goal", plan="lop"))

    def smollm2(_bench: Bench) -> None:
        if fails:
            raise OSError("no package index")

    monkeypatch.setattr("benchmarks.machine.RESULTS_DIR", results)
    monkeypatch.setattr(recovery, "WORK", tmp_path / "work")
    monkeypatch.setattr(recovery, "PARTS", {"goal": goal, "smollm2": smollm2})

    def kept() -> dict[str, Any]:
        return {path.name: json.loads(path.read_text())["summary"] for path in results.iterdir()}

    with pytest.raises(OSError, match="no package index"):
        recovery.main(None, STEPS, "recovery")
    assert [*kept()] == ["recovery-partial.json"]
    assert kept()["recovery-partial.json"]["reference_percent_of_dense"] == 96
    fails = False
    recovery.main(["smollm2"], STEPS, "recovery")
    assert [*kept()] == ["recovery.json"]
    assert kept()["recovery.json"]["reference_percent_of_dense"] == 96
