"""The part `chosen` of the recovery benchmark: what it runs could be typed, and both plans are trained alike."""

from pathlib import Path
from typing import Any

from benchmarks.recovery import Bench, Row
from benchmarks.recovery_chosen import chosen
from benchmarks.steps import Step
from tests.command_lines import parse


class Typed(Bench):
    """Parses commands instead of running them, and answers searches as `lop search` does."""

    def __init__(self, work: Path) -> None:
        self.work, self.num_steps, self.rows = work, 15, []
        self.steps = self  # type: ignore[assignment]
        self.asked: list[dict[str, Any]] = []
        self.trained: list[tuple[str, tuple[str, ...], Row | None]] = []

    @property
    def data(self) -> Path:
        return self.work / "train.json"

    @property
    def selection(self) -> Path:
        return self.work / "selection.json"

    def lop(self, _name: str, *arguments: str, **_: Any) -> Step:
        self.asked.append({"command": arguments[0], **parse(["lop", *arguments])})
        target = {"finalists": [{"after": {"selection": {}}}, {"after": {}}], "best_before_is_best_after": True}
        return Step({"after_recovery": {"targets": [target, target]}}, 1.0, "", {})

    def recover(self, name: str, pruned: Path, *options: str, facts: Row | None = None, **_: Any) -> Row:
        parse(["lop", "recover", str(pruned), "--teacher", "t", "--data", "d", "--out", "o", *options])
        self.trained.append((name, options, facts))
        return {}


def test_both_plans_of_both_ratios_are_trained_alike(tmp_path: Path) -> None:
    bench = Typed(tmp_path)
    chosen(bench)
    commands = [x["command"] for x in bench.asked]
    assert commands == ["model", "search", *["plan", "apply"] * 4]
    (search,) = (x for x in bench.asked if x["command"] == "search")
    assert (list(search["sparsity"]), search["budget"]) == ([0.45, 0.6], 2.0)
    assert str(search["recovery_data"]) == str(bench.data)
    assert '"steps": 3' in search["after_recovery"]
    plans = [x for x in bench.asked if x["command"] == "plan"]
    assert [(x["sparsity"], x["after_recovery"]) for x in plans] == [
        (0.45, False),
        (0.45, True),
        (0.6, False),
        (0.6, True),
    ]
    assert len({options for _, options, _ in bench.trained}) == 1
    facts = [facts for _, _, facts in bench.trained if facts is not None]
    assert [(x["ratio"], x["chosen_for"], x["finalists_recovered"]) for x in facts] == [
        (0.45, "before", 1),
        (0.45, "after", 1),
        (0.6, "before", 1),
        (0.6, "after", 1),
    ]
