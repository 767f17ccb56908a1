"""Statistics of registered models: measured once, stored, found again."""

import shutil
import sqlite3
from pathlib import Path

import pytest
import torch

from lop import measuring, registration
from lop.measuring import StatisticsMeasurer
from lop.registration import register_model
from pruning.batches import make_batches
from pruning.checkpoint import load_model, load_processor
from pruning.conversations import Conversation, calibration_id, load_conversations
from pruning.errors import ConflictError, FingerprintMismatchError, InputError, NotFoundError
from pruning.importance import channel_scores
from pruning.ranking import Ranking
from pruning.statistics import ModelStatistics, StatisticsKind, measure_statistics
from storage.contract import Repository
from storage.sql_repository import open_repository
from tests.tiny_models import save_tiny_checkpoint


@pytest.fixture(scope="module")
def conversations(data: Path) -> list[Conversation]:
    return load_conversations(data)


@pytest.fixture
def old_database(database: str) -> str:
    """A database as a version without statistics leaves it, after its migration."""
    path = database.removeprefix("sqlite:///")
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM statistics")
        connection.execute("DELETE FROM calibrations")
    connection.close()
    return database


def no_model(*_: object) -> None:
    raise AssertionError("the model was loaded")


def test_registering_stores_the_statistics_that_the_ranking_follows_from(
    repository: Repository, conversations: list[Conversation]
) -> None:
    (record,) = repository.list_statistics("tiny")
    assert record == repository.latest_statistics("tiny", "activations")
    assert record.calibration_id == calibration_id(conversations)
    used = repository.get_calibration(record.calibration_id)
    assert (used.num_conversations, used.num_answers) == (40, 80)
    statistics = ModelStatistics.from_bytes(repository.get_artifact(record.sha256).content)
    model = repository.get_model("tiny")
    statistics.check(model.anatomy, StatisticsKind.ACTIVATIONS)
    assert Ranking.from_scores(model.anatomy, channel_scores(statistics)).sha256 == model.ranking_sha256


def test_registering_an_equal_model_again_measures_and_changes_nothing(
    repository: Repository, checkpoint: Path, conversations: list[Conversation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration, "load_for_compute", no_model)
    before = repository.get_model("tiny"), repository.list_statistics("tiny")
    assert register_model(repository, "tiny", checkpoint, conversations) == before[0]
    assert (repository.get_model("tiny"), repository.list_statistics("tiny")) == before


def test_statistics_on_other_data_do_not_make_another_ranking(
    repository: Repository, checkpoint: Path, conversations: list[Conversation]
) -> None:
    other = conversations[:20]
    StatisticsMeasurer(repository, "tiny").measure(StatisticsKind.ACTIVATIONS, other, name="half")
    with pytest.raises(ConflictError, match="another ranking_sha256"):
        register_model(repository, "tiny", checkpoint, other)


def test_a_registration_that_stopped_before_its_statistics_is_completed(
    old_database: str, checkpoint: Path, conversations: list[Conversation]
) -> None:
    with open_repository(old_database) as repository:
        model = repository.get_model("tiny")
        assert register_model(repository, "tiny", checkpoint, conversations, name="conversations.json") == model
        assert [x.kind for x in repository.list_statistics("tiny")] == ["activations"]
        assert repository.get_calibration(calibration_id(conversations)).name == "conversations.json"


def test_a_model_of_an_earlier_version_is_completed(old_database: str, conversations: list[Conversation]) -> None:
    with open_repository(old_database) as repository:
        measurer = StatisticsMeasurer(repository, "tiny")
        assert measurer.missing() == list(StatisticsKind)
        for kind in measurer.missing():
            measurer.measure(kind, conversations, name="c")
        assert measurer.missing() == []
        # They are those that its ranking was made from.
        record = repository.latest_statistics("tiny", "activations")
        assert record is not None
        statistics = ModelStatistics.from_bytes(repository.get_artifact(record.sha256).content)
        model = repository.get_model("tiny")
        assert Ranking.from_scores(model.anatomy, channel_scores(statistics)).sha256 == model.ranking_sha256


def test_every_kind_is_measured_as_its_recipe_says(
    repository: Repository, checkpoint: Path, conversations: list[Conversation]
) -> None:
    measurer = StatisticsMeasurer(repository, "tiny")
    assert measurer.missing() == [StatisticsKind.GRADIENTS, StatisticsKind.ZEROTH_ORDER]
    told: list[tuple[int, int]] = []
    for kind, count, batch_size in ((StatisticsKind.GRADIENTS, 10, 1), (StatisticsKind.ZEROTH_ORDER, 32, 8)):
        record = measurer.measure(kind, conversations, name="c", on_batch=lambda *done: told.append(done))
        assert (record.kind, record.calibration_id) == (kind, calibration_id(conversations[:count]))
        assert repository.get_calibration(record.calibration_id).num_conversations == count
        assert told[-1][0] == told[-1][1]
        batches = make_batches(conversations[:count], load_processor(checkpoint), batch_size=batch_size)
        expected = measure_statistics(kind, load_model(checkpoint), batches)
        assert repository.get_artifact(record.sha256).content == expected.to_bytes()
    assert measurer.missing() == []


def test_what_is_stored_is_not_measured_again(
    repository: Repository, conversations: list[Conversation], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = StatisticsMeasurer(repository, "tiny").measure(
        StatisticsKind.GRADIENTS, conversations, name="c", num_conversations=4
    )
    monkeypatch.setattr(measuring, "load_for_compute", no_model)
    again = StatisticsMeasurer(repository, "tiny").measure(StatisticsKind.GRADIENTS, conversations[:4], name="other")
    assert again == first


def test_mistakes_are_told_before_the_model_is_loaded(
    tmp_path: Path, checkpoint: Path, conversations: list[Conversation], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    repository = open_repository(f"sqlite:///{tmp_path / 'lop.db'}", create=True)
    register_model(repository, "mine", folder, conversations)
    save_tiny_checkpoint(tmp_path / "other", seed=1)
    shutil.copyfile(tmp_path / "other" / "model.safetensors", folder / "model.safetensors")
    monkeypatch.setattr(measuring, "load_for_compute", no_model)
    with pytest.raises(FingerprintMismatchError, match="must not change"):
        StatisticsMeasurer(repository, "mine").measure(StatisticsKind.GRADIENTS, conversations, name="c")
    with pytest.raises(NotFoundError, match="'none'"):
        StatisticsMeasurer(repository, "none")
    with pytest.raises(InputError, match=r"magic.*activations, gradients, zeroth-order"):
        measuring.kinds_of(["gradients", "magic"])
    assert measuring.kinds_of(["gradients", "gradients"]) == [StatisticsKind.GRADIENTS]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_and_gradients_are_as_before(
    checkpoint: Path, conversations: list[Conversation], dtype: torch.dtype
) -> None:
    """One loaded model measures all kinds in a row: none may see a trace of another."""
    model = load_model(checkpoint, dtype=dtype)
    batches = make_batches(conversations[:4], load_processor(checkpoint), batch_size=2)
    kinds = list(reversed(StatisticsKind))
    alone = [measure_statistics(kind, load_model(checkpoint, dtype=dtype), batches).to_bytes() for kind in kinds]
    assert [measure_statistics(kind, model, batches).to_bytes() for kind in kinds] == alone
    assert [measure_statistics(kind, model, batches).to_bytes() for kind in reversed(kinds)] == alone[::-1]


def test_perturbed_losses_of_a_bfloat16_checkpoint_are_measured_in_float32(
    checkpoint: Path, conversations: list[Conversation], tmp_path: Path
) -> None:
    folder = tmp_path / "half"
    load_model(checkpoint, dtype=torch.bfloat16).save_pretrained(folder)
    load_processor(checkpoint).save_pretrained(folder)
    repository = open_repository(f"sqlite:///{tmp_path / 'lop.db'}", create=True)
    register_model(repository, "half", folder, conversations)
    record = StatisticsMeasurer(repository, "half").measure(
        StatisticsKind.ZEROTH_ORDER, conversations, name="c", num_conversations=16
    )
    batches = make_batches(conversations[:16], load_processor(checkpoint), batch_size=8)
    expected = measure_statistics(StatisticsKind.ZEROTH_ORDER, load_model(folder, dtype=torch.float32), batches)
    assert repository.get_artifact(record.sha256).content == expected.to_bytes()
