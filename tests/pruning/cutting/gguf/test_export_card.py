"""The card beside an exported file: the pruned folder's facts, and nobody's README replaced."""

from pathlib import Path

import yaml  # type: ignore[import-untyped]

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.checkpoints.loading import PLAN_NAME
from pruning.cutting.base_model import CARD_NAME
from pruning.cutting.gguf.export_card import write_export_card
from pruning.cutting.gguf.options import TensorType
from pruning.cutting.prune_checkpoint import prune_checkpoint
from tests.pruning.cut_models import WIDTHS, plan_for, random_ranking


def test_a_card_of_a_pruned_and_of_a_dense_export(checkpoint: Path, anatomy: ModelAnatomy, tmp_path: Path) -> None:
    ranking = random_ranking(anatomy)
    plan = plan_for(anatomy, ranking, WIDTHS)
    out = prune_checkpoint(checkpoint, plan, ranking, tmp_path / "out", base_model="some-lab/tiny")
    card = write_export_card(out, tmp_path / "m.gguf", tmp_path / "v.gguf", TensorType.Q8_0)
    assert card == tmp_path / CARD_NAME
    _, metadata, text = card.read_text().split("---\n", 2)
    said = yaml.safe_load(metadata)
    assert (said["base_model"], said["tags"]) == ("some-lab/tiny", ["gguf", "lop", "pruned"])
    assert said["pipeline_tag"] == "image-text-to-text"
    for words in (plan.plan_id, plan.ranking.sha256, "q8_0", "llama-mtmd-cli -m m.gguf --mmproj v.gguf"):
        assert words in text
    card.unlink()
    write_export_card(checkpoint, tmp_path / "m.gguf", None, TensorType.F16)
    assert "pruned" not in card.read_text()
    assert "text-generation" in card.read_text()


def test_a_readme_that_is_there_is_kept(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / CARD_NAME).write_text("mine")
    assert write_export_card(checkpoint, tmp_path / "m.gguf", None, TensorType.F16) is None
    assert (tmp_path / CARD_NAME).read_text() == "mine"


def test_a_plan_of_a_newer_schema_is_told_and_the_rest_is_said(
    checkpoint: Path, anatomy: ModelAnatomy, tmp_path: Path
) -> None:
    ranking = random_ranking(anatomy)
    plan = plan_for(anatomy, ranking, WIDTHS)
    out = prune_checkpoint(checkpoint, plan, ranking, tmp_path / "out", base_model="some-lab/tiny")
    (out / PLAN_NAME).write_text('{"schema_version": 3}')
    told: list[str] = []
    card = write_export_card(out, tmp_path / "m.gguf", None, TensorType.F16, on_note=told.append)
    assert card is not None
    _, metadata, text = card.read_text().split("---\n", 2)
    assert yaml.safe_load(metadata)["tags"] == ["gguf", "lop", "pruned"]
    assert f"`{PLAN_NAME}` in the folder" in text
    assert plan.plan_id not in text
    assert "llama-cli -m m.gguf" in text
    (note,) = told
    assert note.startswith("the model card says nothing of the plan: ")
    assert "schema" in note
