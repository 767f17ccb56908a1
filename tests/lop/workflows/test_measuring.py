"""Statistics of registered models: measured once, stored, found again."""

import shutil
import sqlite3
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient
from sqlalchemy import update

from lop.workflows import measuring
from lop.workflows.measuring import OF_METHODS, StatisticsMeasurer, store_statistics
from lop.workflows.registration import register_by_weights, register_model
from pruning.checkpoints.loading import load_model, load_processor
from pruning.data.batches import make_batches
from pruning.data.conversations import Conversation, calibration_id, load_conversations
from pruning.errors import ConflictError, FingerprintMismatchError, InputError, NotFoundError
from pruning.measuring.criterion import Criterion
from pruning.measuring.importance import ranking_of
from pruning.measuring.statistics import ModelStatistics, StatisticsKind, measure_statistics
from pruning.measuring.weight_importance import rank_by_weights
from pruning.planning.ranking import Ranking
from service.app import create_app
from service.settings import Settings
from storage.contract import Repository
from storage.records import BINARY, ModelRecord, RankingOrigin
from storage.sql_repository import SqlRepository, open_repository
from storage.tables import ModelRow
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
    assert ranking_of(statistics, model.anatomy).sha256 == model.ranking_sha256


def test_registering_an_equal_model_again_measures_and_changes_nothing(
    repository: Repository, checkpoint: Path, conversations: list[Conversation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "measure_checkpoint", no_model)
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


def test_it_is_noted_what_a_ranking_was_made_by(
    repository: Repository, checkpoint: Path, conversations: list[Conversation]
) -> None:
    used = calibration_id(conversations)
    assert repository.get_model("tiny").ranking_origin == RankingOrigin("activations", used)
    bare = register_by_weights(repository, "bare", checkpoint)
    assert bare.ranking_origin == RankingOrigin("weights")
    assert register_by_weights(repository, "bare", checkpoint) == bare


@pytest.mark.parametrize("is_noted", [True, False])
def test_an_id_that_is_ranked_otherwise_is_refused_before_anything_is_measured(
    repository: SqlRepository,
    checkpoint: Path,
    conversations: list[Conversation],
    monkeypatch: pytest.MonkeyPatch,
    is_noted: bool,
) -> None:
    register_by_weights(repository, "bare", checkpoint)
    monkeypatch.setattr(measuring, "measure_checkpoint", no_model)
    if is_noted:  # nothing is ranked again to find out
        for module, name in (("importance", "ranking_of"), ("weight_importance", "rank_by_weights")):
            monkeypatch.setattr(f"pruning.measuring.{module}.{name}", no_model)
        with pytest.raises(ConflictError, match="'tiny' was ranked by activations statistics, calibration"):
            register_by_weights(repository, "tiny", checkpoint)
    else:
        with repository._engine.begin() as connection:
            connection.execute(update(ModelRow).values(ranking_origin=None))
    remedy = "lop model measure bare --data FILE.*another id"
    with pytest.raises(ConflictError, match=rf"'bare' was ranked by its weights alone.*{remedy}"):
        register_model(repository, "bare", checkpoint, conversations)
    with pytest.raises(ConflictError, match=r"'tiny' was ranked on other conversations, calibration\W"):
        register_model(repository, "tiny", checkpoint, conversations[:20])


def test_statistics_are_kept_where_it_turns_out_late_that_the_ranking_is_another(
    repository: Repository, checkpoint: Path, conversations: list[Conversation]
) -> None:
    known = repository.get_model("tiny")
    ranking = Ranking.from_bytes(repository.get_artifact(known.ranking_sha256).content)
    upside_down = replace(ranking, ffn=tuple(order[::-1].copy() for order in ranking.ffn))
    sha256 = repository.put_artifact(upside_down.to_bytes(), BINARY)
    repository.add_model(replace(known, id="odd", ranking_origin=None, ranking_sha256=sha256))
    with pytest.raises(ConflictError, match="another ranking_sha256"):
        register_model(repository, "odd", checkpoint, conversations)
    (kept,) = repository.list_statistics("odd")
    (measured,) = repository.list_statistics("tiny")
    assert (kept.kind, kept.sha256) == ("activations", measured.sha256)


def test_only_the_model_of_the_id_is_read(
    repository: Repository, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(repository), "list_models", no_model)
    assert register_by_weights(repository, "bare", checkpoint) == repository.get_model("bare")


OF_ATTENTION = ("attention_second_moment", "out_norm", "group_contribution")


def test_a_model_registered_before_groups_were_ranked_stays_as_it_is(
    repository: Repository, checkpoint: Path, conversations: list[Conversation]
) -> None:
    (stored,) = repository.list_statistics("tiny")
    statistics = ModelStatistics.from_bytes(repository.get_artifact(stored.sha256).content)
    anatomy = repository.get_model("tiny").anatomy
    old_ranking = replace(ranking_of(statistics, anatomy), kv_groups=None)
    old = replace(
        repository.get_model("tiny"), id="old", ranking_sha256=repository.put_artifact(old_ranking.to_bytes(), BINARY)
    )
    repository.add_model(old)
    # Without statistics: they are measured, with attention, and the channels come out in the order that they were.
    assert register_model(repository, "old", checkpoint, conversations).ranking_sha256 == old.ranking_sha256
    (measured,) = repository.list_statistics("old")
    assert ModelStatistics.from_bytes(repository.get_artifact(measured.sha256).content).has_attention
    # With statistics of that version.
    bare = {name: x for name, x in statistics.arrays.items() if not name.endswith(OF_ATTENTION)}
    older = replace(old, id="older")
    repository.add_model(older)
    calibration = repository.get_calibration(stored.calibration_id)
    store_statistics(repository, "older", replace(statistics, arrays=bare), calibration)
    assert register_model(repository, "older", checkpoint, conversations).ranking_sha256 == old.ranking_sha256


def test_a_model_is_registered_by_its_weights_alone(
    repository: Repository, checkpoint: Path, conversations: list[Conversation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "measure_checkpoint", no_model)
    monkeypatch.setattr(measuring, "load_for_compute", no_model)
    told: list[tuple[int, int]] = []
    record = register_by_weights(repository, "bare", checkpoint, on_bytes=lambda *x: told.append(x))
    size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    assert told[-1] == (size, size)
    assert repository.list_statistics("bare") == []
    ranking = Ranking.from_bytes(repository.get_artifact(record.ranking_sha256).content)
    assert ranking.sha256 == rank_by_weights(checkpoint, record.anatomy).sha256
    assert register_by_weights(repository, "bare", checkpoint) == record
    with pytest.raises(ConflictError, match="'tiny' was ranked by activations statistics"):
        register_by_weights(repository, "tiny", checkpoint)
    other = save_tiny_checkpoint(checkpoint.parent / "seed1", seed=1)
    with pytest.raises(ConflictError, match="one checkpoint for ever"):
        register_by_weights(repository, "bare", other)
    with pytest.raises(InputError, match="letters, digits"):
        register_by_weights(repository, "a b", checkpoint)


def test_activations_of_a_registered_model_are_measured_without_loading_it(
    repository: Repository, checkpoint: Path, conversations: list[Conversation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "load_for_compute", no_model)
    half = conversations[:20]
    record = StatisticsMeasurer(repository, "tiny").measure(StatisticsKind.ACTIVATIONS, half, name="half")
    batches = make_batches(half, load_processor(checkpoint), batch_size=16)
    expected = measure_statistics(StatisticsKind.ACTIVATIONS, load_model(checkpoint), batches)
    assert repository.get_artifact(record.sha256).content == expected.to_bytes()


@pytest.mark.parametrize("is_noted", [True, False])
def test_a_registration_that_stopped_before_its_statistics_is_completed(
    old_database: str, checkpoint: Path, conversations: list[Conversation], is_noted: bool
) -> None:
    with open_repository(old_database) as repository:
        model = repository.get_model("tiny")
        if not is_noted:  # by a version that did not
            with repository._engine.begin() as connection:
                connection.execute(update(ModelRow).values(ranking_origin=None))
        else:
            with pytest.raises(ConflictError, match=r"'tiny' was ranked on other conversations\)"):
                register_model(repository, "tiny", checkpoint, conversations[:20])
        assert register_model(repository, "tiny", checkpoint, conversations, name="conversations.json") == model
        assert [x.kind for x in repository.list_statistics("tiny")] == ["activations"]
        assert repository.get_calibration(calibration_id(conversations)).name == "conversations.json"


def test_a_model_of_an_earlier_version_is_completed(old_database: str, conversations: list[Conversation]) -> None:
    with open_repository(old_database) as repository:
        measurer = StatisticsMeasurer(repository, "tiny")
        assert measurer.missing() == list(OF_METHODS)
        for kind in measurer.missing():
            measurer.measure(kind, conversations, name="c")
        assert measurer.missing() == []
        # They are those that its ranking was made from.
        record = repository.latest_statistics("tiny", "activations")
        assert record is not None
        statistics = ModelStatistics.from_bytes(repository.get_artifact(record.sha256).content)
        model = repository.get_model("tiny")
        assert ranking_of(statistics, model.anatomy).sha256 == model.ranking_sha256


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


@pytest.mark.parametrize(
    "model_id", ["./llava", "../x", "a//b", "a/", "/a", "a/./b", "a/..", ".", "..", "x/ranking", "a/b/ranking"]
)
def test_ids_that_a_url_cannot_carry_are_refused(
    repository: Repository, checkpoint: Path, conversations: list[Conversation], model_id: str
) -> None:
    with pytest.raises(InputError, match="URL can carry"):
        register_by_weights(repository, model_id, checkpoint)
    with pytest.raises(InputError, match="URL can carry"):
        register_model(repository, model_id, checkpoint, conversations)
    assert model_id not in [record.id for record in repository.list_models()]


@pytest.mark.parametrize(
    "model_id", ["llava-hf/llava-1.5-7b-hf", "ranking", "a/ranking-b", "...", "a.b/.c", "v1/models"]
)
def test_ids_that_a_url_carries_are_fetched(repository: Repository, checkpoint: Path, model_id: str) -> None:
    record = register_by_weights(repository, model_id, checkpoint)
    with TestClient(create_app(Settings(), repository=repository)) as client:
        found = client.get(f"/v1/models/{model_id}").json()
        assert found["id"] == model_id
        assert client.get(found["ranking"]["url"]).headers["etag"] == f'"{record.ranking_sha256}"'


def test_an_id_of_an_earlier_version_keeps_working(repository: Repository, checkpoint: Path) -> None:
    record = register_by_weights(repository, "new", checkpoint)
    old = repository.add_model(replace(record, id="./old"))
    assert register_by_weights(repository, "./old", checkpoint) == old


def test_a_model_is_ranked_by_elimination(
    repository: Repository,
    checkpoint: Path,
    conversations: list[Conversation],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The statistics are stored, and are those of the ranking; the folder of sums stays where it is named."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    few, sums = conversations[:8], tmp_path / "sums"
    told: list[tuple[int, int]] = []

    def register(name: str, work: Path | None) -> ModelRecord:
        return register_model(
            repository,
            name,
            checkpoint,
            few,
            criterion=Criterion.ELIMINATION,
            work=work,
            on_layer=lambda *x: told.append(x),
        )

    record = register("eliminated", sums)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert record.ranking_origin == RankingOrigin("second-order", calibration_id(few))
    (stored,) = repository.list_statistics("eliminated")
    statistics = ModelStatistics.from_bytes(repository.get_artifact(stored.sha256).content)
    assert statistics.kind is StatisticsKind.SECOND_ORDER
    assert ranking_of(statistics, record.anatomy).sha256 == record.ranking_sha256
    assert record.ranking_sha256 != repository.get_model("tiny").ranking_sha256
    assert len(list(sums.glob("layer-?????.safetensors"))) == 4
    # Without a folder of their own, sums are temporary.
    assert register("again", None).ranking_sha256 == record.ranking_sha256
    assert [path.name for path in tmp_path.iterdir() if "second-order" in path.name] == []
    with pytest.raises(ConflictError, match="'eliminated' was ranked by second-order statistics"):
        register_model(repository, "eliminated", checkpoint, few)
