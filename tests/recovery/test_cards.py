"""The cards of recovered checkpoints, and of what is exported of them."""

import shutil
from pathlib import Path

import pytest

from lop.workflows.recovering import recover_folder, recovery_data
from pruning.checkpoints.loading import PLAN_NAME
from pruning.cutting.base_model import CARD_NAME
from pruning.cutting.gguf.export_card import write_export_card
from pruning.cutting.measured_quality import recovery_lines
from recovery.recipe import Recipe
from recovery.report import REPORT_NAME
from tests.recovery.conftest import Cut


def recovered(cut: Cut, start: Path, out: Path) -> Path:
    recipe = Recipe.of(mode="projector", losses={"sft": 1.0}, epochs=1, evaluations=1, batch_tokens=200)
    recover_folder(start, cut.dense, recovery_data(cut.data, recipe=recipe), recipe, out)
    return out


@pytest.mark.parametrize("has_plan", [True, False])
def test_a_start_without_a_card_gets_one(cut: Cut, tmp_path: Path, has_plan: bool) -> None:
    start = Path(shutil.copytree(cut.pruned, tmp_path / "start"))
    (start / CARD_NAME).unlink()
    if not has_plan:
        (start / PLAN_NAME).unlink()
    out = recovered(cut, start, tmp_path / "out")
    text = (out / CARD_NAME).read_text()
    assert text.startswith("---\nlibrary_name: transformers\n")
    assert (cut.plan.plan_id in text) is has_plan
    assert "lop.load_pruned(FOLDER)" in text
    assert "## Recovery" in text
    assert REPORT_NAME in text


def test_a_card_that_somebody_wrote_is_kept(cut: Cut, tmp_path: Path) -> None:
    start = Path(shutil.copytree(cut.pruned, tmp_path / "start"))
    (start / CARD_NAME).write_text("mine")
    assert (recovered(cut, start, tmp_path / "out") / CARD_NAME).read_text() == "mine"


def test_the_card_of_an_export_has_what_the_recovery_measured(cut: Cut, tmp_path: Path) -> None:
    out = recovered(cut, cut.pruned, tmp_path / "out")
    card = write_export_card(out, tmp_path / "m.gguf", None, "f16", measured=["- task, acc (lm-eval): 0.5"])
    assert card is not None
    text = card.read_text()
    (line,) = recovery_lines(out)
    assert line.startswith("- selection part of `lop recover`, ")
    assert "of the checkpoint that this file was exported from, not of the file" in text
    assert f"\n{line}\n- task, acc (lm-eval): 0.5\n" in text
    for content in ("{", "[]", '{"selection": {}}'):
        (out / REPORT_NAME).write_text(content)
        assert recovery_lines(out) == []
    assert recovery_lines(cut.pruned) == []
