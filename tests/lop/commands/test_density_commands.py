"""Densities as a user types it: searched, planned, written."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lop.cli import main
from lop.workflows import measuring
from pruning.data.conversations import Conversation
from tests.tiny_models import write_conversations


def test_searched_planned_written_and_looked_at(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    checkpoint: Path,
    database: str,
    tmp_path: Path,
) -> None:
    def lop(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lop", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as error:
            code = int(error.code or 0)
        printed = capsys.readouterr()
        return code, " ".join(printed.out.split()), " ".join(printed.err.split())

    monkeypatch.setenv("COLUMNS", "250")  # so that no cell is folded
    data = write_conversations(tmp_path / "data", 4)
    others = write_conversations(tmp_path / "others", 2, seed=1)
    of_density = ("-m", "tiny", "--space", "density", "--database", database)
    picture, plan, out = tmp_path / "search.png", tmp_path / "plan.json", tmp_path / "sparse"
    measure, told = measuring.measure_input_squares, [(0, 0)]
    passes: list[int] = []

    def watched(
        folder: Path, conversations: Sequence[Conversation], *, on_batch: Callable[[int, int], None] | None = None
    ) -> bytes:
        assert on_batch is not None
        passes.append(len(conversations))

        def telling(done: int, total: int) -> None:
            told.append((done, total))
            on_batch(done, total)

        return measure(folder, conversations, on_batch=telling)

    monkeypatch.setattr(measuring, "measure_input_squares", watched)
    code, shown, err = lop(
        "search", *of_density, "-d", data, "-s", 0.5, "-n", 2, "--validation", others, "--plot", picture
    )
    assert code == 0, err
    assert passes == [4]  # once, by the calibration conversations, for the search and its validation
    assert told[-1][0] == told[-1][1] > 4
    assert "attention densities" in shown
    assert "plan with `lop plan --model tiny --space density` and a sparsity" in shown
    assert picture.stat().st_size > 1000

    code, _, err = lop("plan", *of_density, "-s", 0.5, "--method", "mcts", "--out", plan)
    assert code == 0, err
    document = json.loads(plan.read_text())
    assert document["predicted"]["of"] == "unseen"
    for words, message in (
        (("--disk", "1GB"), "no budget asks for them"),
        (("-s", 0.5, "--scope", "model"), "leave scope out"),
        (("-s", 0.5, "--schema", 1), "schema 1"),
    ):
        code, _, err = lop("plan", *of_density, *words)
        assert (code, message in err) == (2, True), err
    code, _, err = lop("train", *of_density)
    assert (code, "need a search alone" in err) == (2, True), err
    code, _, err = lop("apply", "--plan", plan, "--model", checkpoint, "--out", out)
    assert (code, "lop sparsify MODEL --plan PLAN" in err) == (2, True), err

    write = ("sparsify", checkpoint, "--out", out, "-d", data, "--plan", plan, "--method", "wanda")
    code, _, err = lop(*write, "--inputs", "guessed")
    assert (code, "rewritten, dense" in err) == (2, True), err
    code, shown, err = lop(*write, "--inputs", "dense")
    assert code == 0, err
    code, shown, _ = lop("inspect", out)
    zeroed = json.loads((out / "config.json").read_text())["lop_sparsity"]["zeroed"]
    assert code == 0
    assert f"{zeroed:,} of" in shown
    assert "are zero, by wanda: zeroed, not removed" in shown
