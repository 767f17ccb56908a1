"""What decides, on scores that are given: the start's bytes are written unless something beat it beyond the noise."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lop.workflows.recovering import recover_folder, recovery_data
from pruning.arrays import FloatArray
from pruning.checkpoints.loading import load_processor
from recovery.judging import Judge
from recovery.passes import Passes
from recovery.recipe import Recipe
from recovery.scores import AnswerScores
from tests.recovery.conftest import Cut
from tests.tiny_models import write_conversations

Given = tuple[FloatArray, FloatArray]
"""KL and exactness of every answer, [n]."""

SAME: FloatArray = np.ones(20)
HALF_EXACT: FloatArray = np.array([0.0, 1.0] * 10)
ONE_FEWER: FloatArray = np.where(np.arange(20) == 1, 0.0, HALF_EXACT)


def run(
    cut: Cut, out: Path, monkeypatch: pytest.MonkeyPatch, selection: Path, scores: Sequence[Given]
) -> tuple[dict[str, Any], list[str]]:
    """The report of two steps, and notes; the start, each step and what was best have the `scores`, in that order."""
    own, told = Judge.scores, iter(scores)

    def given(judge: Judge, passes: Passes) -> AnswerScores:
        kl, correct = next(told)
        found = own(judge, passes)
        judge.dense_scores = replace(judge.dense_scores, correct=np.ones(len(kl)))
        return replace(found, kl=kl * found.tokens, correct=correct)

    recipe = Recipe.of(mode="projector", losses={"sft": 1.0}, steps=2, evaluations=2, batch_tokens=200)
    notes: list[str] = []
    data = recovery_data(cut.data, selection=selection, recipe=recipe, on_note=notes.append)
    with monkeypatch.context() as patched:
        patched.setattr(Judge, "scores", given)
        return recover_folder(cut.pruned, cut.dense, data, recipe, out), notes


@pytest.fixture
def selection(tmp_path: Path) -> Path:
    """Of 20 answers."""
    return write_conversations(tmp_path / "selection", 10, seed=3)


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_a_gain_within_the_noise_is_none(
    cut: Cut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selection: Path
) -> None:
    noisy = np.array([0.0, 1.9] * 10), HALF_EXACT
    report, notes = run(cut, tmp_path / "out", monkeypatch, selection, [(SAME, HALF_EXACT), noisy, noisy, noisy])
    assert (report["written"], report["best_step"]) == ("start", 1)
    assert "within the noise of the selection part" in report["why"]
    assert report["selection"]["after"] == report["selection"]["before"]
    assert weights(tmp_path / "out") == weights(cut.pruned)
    assert not any("answers" in note for note in notes)


def test_fewer_exact_answers_are_not_better_however_near(
    cut: Cut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selection: Path
) -> None:
    start, worse = (SAME, HALF_EXACT), (SAME * 0.1, ONE_FEWER)
    report, _ = run(cut, tmp_path / "none", monkeypatch, selection, [start, worse, worse])
    assert (report["written"], report["best_step"]) == ("start", 0)
    assert "with as many exact answers" in report["why"]
    assert weights(tmp_path / "none") == weights(cut.pruned)

    better = SAME * 0.5, HALF_EXACT
    report, _ = run(cut, tmp_path / "first", monkeypatch, selection, [start, better, worse, better])
    assert (report["written"], report["best_step"]) == ("recovered", 1)
    assert weights(tmp_path / "first") != weights(cut.pruned)


def test_four_answers_show_nothing(cut: Cut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = write_conversations(tmp_path / "selection", 2, seed=3)
    start, better = (np.ones(4), np.zeros(4)), (np.full(4, 0.1), np.ones(4))
    report, notes = run(cut, tmp_path / "out", monkeypatch, few, [start, better, better, better])
    assert (report["written"], report["best_step"]) == ("start", 1)
    assert "4 answers do not tell its gain from chance, which gives as much in 6% of cases" in report["why"]
    assert any("4 answers cannot show that anything is better than the start" in note for note in notes)
    assert weights(tmp_path / "out") == weights(cut.pruned)


def test_the_report_tells_kinds_of_questions_apart(
    cut: Cut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selection: Path
) -> None:
    items = json.loads(selection.read_text())
    for item in items:
        answers = [said["value"] for said in item["conversations"] if said["from"] == "gpt"]
        item["kinds"] = ["two words" if " " in answer else "one word" for answer in answers]
    selection.write_text(json.dumps(items))
    (part,) = recovery_data(cut.data, selection=selection, recipe=Recipe()).judged_on(load_processor(cut.pruned))
    tokens = np.array([span.stop - span.start for batch in part.batches for span in batch.spans])
    is_long = np.array([kind == "two words" for kind in part.kinds or ()])
    assert tokens[is_long].min() > tokens[~is_long].max()  # kinds are in the order of the answers
    count = int(is_long.sum())

    none, some = np.zeros(20), is_long.astype(float)
    scores = [(SAME, none), (SAME * 0.5, some), (SAME * 0.4, some), (SAME * 0.4, some)]
    report, _ = run(cut, tmp_path / "out", monkeypatch, selection, scores)
    assert report["written"] == "recovered"
    found = report["selection"]["by_kind"]
    shown = {kind: (x["answers"], x["before"]["percent"], x["after"]["percent"]) for kind, x in found.items()}
    assert shown == {"two words": (count, 0.0, 100.0), "one word": (20 - count, 0.0, 0.0)}
