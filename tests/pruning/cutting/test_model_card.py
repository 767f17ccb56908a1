"""The card of a pruned checkpoint: metadata that the hub reads, what was cut, where it comes from."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.loading import load_model
from pruning.cutting.base_model import BASE_CARD_NAME, CARD_NAME, read_base_model
from pruning.cutting.inspection import inspect_checkpoint
from pruning.cutting.model_card import MARK
from pruning.cutting.prune_checkpoint import prune_checkpoint, save_pruned
from pruning.cutting.pruned_config import NOTE_KEY
from pruning.cutting.surgery import apply_plan
from pruning.errors import InputError
from pruning.planning.plan import Predicted, PruningPlan
from pruning.planning.ranking import Ranking
from pruning.planning.scope import Scope
from tests.pruning.cut_models import plan_for, random_ranking
from tests.tiny_models import save_tiny_checkpoint

BASE_CARD = "---\nlicense: llama2\nlanguage:\n- en\ntags: [vision]\nbase_model: someone/else\n---\n# A card, kept\n"


@pytest.fixture
def dense(checkpoint: Path, tmp_path: Path) -> Path:
    """A dense folder that a test may change."""
    return Path(shutil.copytree(checkpoint, tmp_path / "dense"))


def planned(dense: Path, **changed: Any) -> tuple[PruningPlan, Ranking]:
    anatomy = read_anatomy(dense)
    ranking = random_ranking(anatomy)
    plan = plan_for(anatomy, ranking, [16, 0, 48, 40], [1, 2, 2, 2])
    return plan.model_copy(update=changed), ranking


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    """Metadata and text."""
    opening, metadata, text = (folder / CARD_NAME).read_text().split("---\n", 2)
    assert opening == ""
    assert text.startswith(MARK)
    return yaml.safe_load(metadata), text


def test_the_card_says_what_the_hub_and_a_reader_want(dense: Path, tmp_path: Path) -> None:
    (dense / CARD_NAME).write_text(BASE_CARD)
    predicted = Predicted(quality=0.25, interval=(0.2, 0.5), of="unseen", agreement=0.9, agreement_interval=(0.8, 0.95))
    plan, ranking = planned(dense, predicted=predicted)
    out = prune_checkpoint(dense, plan, ranking, tmp_path / "out", base_model="some-lab/tiny.llava-1.5")
    metadata, text = card_of(out)
    assert metadata == {
        "base_model": "some-lab/tiny.llava-1.5",
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "license": "llama2",
        "language": ["en"],
        "tags": ["lop", "pruned"],
    }
    assert (out / BASE_CARD_NAME).read_text() == BASE_CARD
    assert f"[{BASE_CARD_NAME}]({BASE_CARD_NAME})" in text
    rows = [line for line in text.splitlines() if line.startswith(("| 0 |", "| 1 |", "| 2 |"))]
    assert rows == ["| 0 | 16 of 48 | 1 of 2 |", "| 1 | skipped | 2 |", "| 2 | 48 | 2 |"]
    achieved = plan.achieved
    for said in (
        plan.plan_id, plan.ranking.sha256, plan.model.fingerprint, "Licence of the base model: llama2",
        f"{achieved.parameters:,} parameters, {achieved.disk_bytes:,} bytes",
        f"{achieved.removed[Scope.DECODER]:.1%} of the decoder",
        "KL to the dense model, nats a token: 0.25 (90% interval 0.2 to 0.5)", "90.0% (90% interval 80.0% to 95.0%)",
        "lop.register_transformers()", "AutoModelForImageTextToText.from_pretrained", "lop export gguf",
    ):  # fmt: skip
        assert said in text
    assert "exact" not in text  # the plan predicts none


@pytest.mark.parametrize(
    ("widths", "groups", "skips"),
    [
        ((48, 0, 48, 40), (2, 2, 2, 2), True),
        ((48, 48, 48, 40), (2, 0, 2, 2), True),
        ((16, 8, 48, 40), (1, 2, 2, 2), False),
    ],
)
def test_note_and_card_say_that_what_is_skipped_becomes_random_in_plain_transformers(
    dense: Path, tmp_path: Path, widths: tuple[int, ...], groups: tuple[int, ...], skips: bool
) -> None:
    """Where a plan only skips no shape differs, so that transformers alone loads it: it warns, and goes on."""
    anatomy = read_anatomy(dense)
    ranking = random_ranking(anatomy)
    out = prune_checkpoint(dense, plan_for(anatomy, ranking, list(widths), list(groups)), ranking, tmp_path / "out")
    said = "plain from_pretrained makes what is skipped anew, of random weights"
    note = json.loads((out / "config.json").read_text())[NOTE_KEY]
    assert (said in note, said in " ".join(card_of(out)[1].split())) == (skips, skips)


def test_what_nobody_says_is_not_made_up(dense: Path, tmp_path: Path) -> None:
    plan, ranking = planned(dense)
    out = prune_checkpoint(dense, plan, ranking, tmp_path / "out")
    metadata, text = card_of(out)
    assert not {"base_model", "license"} & metadata.keys()
    assert "names no licence" in text
    assert "predicts no quality" in text
    assert not (out / BASE_CARD_NAME).exists()


@pytest.mark.parametrize("model_id", ["tiny", "a/b/c", "a /b", "/models/tiny", "", "a/" + "b" * 97])
def test_an_id_that_is_none_is_refused_before_anything_is_written(model_id: str, dense: Path, tmp_path: Path) -> None:
    plan, ranking = planned(dense)
    with pytest.raises(InputError, match="ORGANISATION/NAME"):
        prune_checkpoint(dense, plan, ranking, tmp_path / "out", base_model=model_id)
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_ids_and_licences_are_looked_for_where_they_may_be(tmp_path: Path) -> None:
    cached = tmp_path / "models--some-lab--tiny--v1" / "snapshots" / "0123abc"
    cached.mkdir(parents=True)
    (cached / "config.json").write_text(json.dumps({"_name_or_path": "other/name", "license": "mit"}))
    assert (read_base_model(cached).hub_id, read_base_model(cached).licence) == ("some-lab/tiny--v1", "mit")
    assert read_base_model(cached, "given/id").hub_id == "given/id"
    (cached / CARD_NAME).write_text("---\r\nlicense: other\r\nlicense_name: tiny-1\r\n---\r\n")
    assert read_base_model(cached).licence == "tiny-1"
    local = tmp_path / "local"
    local.mkdir()
    for named, expected in (("other/name", "other/name"), ("./x", None), ("/a/b", None), (3, None)):
        (local / "config.json").write_text(json.dumps({"_name_or_path": named}))
        assert read_base_model(local).hub_id == expected
        assert read_base_model(local).name == (expected or "local")


@pytest.mark.parametrize(
    "card", ["", "# no metadata", "---\n- a list\n---\n", "---\n{: broken", "---\n\xff", "---\n&a [*a]\n---\n"]
)
def test_a_card_that_cannot_be_read_says_nothing(card: str, tmp_path: Path) -> None:
    (tmp_path / CARD_NAME).write_bytes(card.encode("latin-1"))
    assert read_base_model(tmp_path).metadata == {}


def test_a_model_that_was_cut_in_memory_has_the_same_card(dense: Path, tmp_path: Path) -> None:
    (dense / CARD_NAME).write_text(BASE_CARD)
    plan, ranking = planned(dense)
    model = apply_plan(load_model(dense), plan, ranking)
    in_memory = card_of(save_pruned(model, plan, tmp_path / "memory"))
    metadata, text = card_of(prune_checkpoint(dense, plan, ranking, tmp_path / "files"))
    assert in_memory[0] == metadata
    assert in_memory[1] + f"\nThe base model's own card: [{BASE_CARD_NAME}]({BASE_CARD_NAME}).\n" == text


@pytest.mark.parametrize("family", ["llama", "phi", "gemma3", "smolvlm", "qwen3-vl", "paligemma", "llava-next"])
def test_the_card_promises_of_vllm_what_inspect_does(family: str, tmp_path: Path) -> None:
    dense = save_tiny_checkpoint(tmp_path / "dense", family)
    anatomy = read_anatomy(dense)
    ranking = random_ranking(anatomy)
    out = prune_checkpoint(dense, plan_for(anatomy, ranking, [16, 8, 48, 40]), ranking, tmp_path / "out")
    (said,) = [x.partition(" beside it")[2] for x in inspect_checkpoint(out).runs_in if x.startswith("vLLM")]
    (line,) = [x for x in (out / CARD_NAME).read_text().splitlines() if x.startswith("- vLLM")]
    assert line.startswith(f"- vLLM{said}: install `lop-vllm`")
