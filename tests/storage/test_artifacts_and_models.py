"""Artifacts, models and calibration sets: immutable, idempotent, refused when they contradict what is stored."""

import dataclasses
import hashlib
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from pruning.errors import ConflictError, InputError, NotFoundError
from storage.records import WEIGHTS, Artifact, RankingOrigin
from storage.sql_repository import SqlRepository
from tests.storage.examples import MORNING, RANKING, RANKING_SHA256, SAFETENSORS, calibration, model


def test_artifact_round_trips_and_is_stored_once(repository: SqlRepository) -> None:
    content = bytes(range(256)) * 5000
    sha256 = repository.put_artifact(content, SAFETENSORS)
    assert sha256 == hashlib.sha256(content).hexdigest()
    assert repository.put_artifact(content, SAFETENSORS) == sha256
    assert repository.get_artifact(sha256) == Artifact(sha256, SAFETENSORS, content)


def test_empty_artifact(repository: SqlRepository) -> None:
    assert repository.get_artifact(repository.put_artifact(b"", "text/plain")).content == b""


def test_artifact_of_another_media_type_is_a_conflict(repository: SqlRepository) -> None:
    sha256 = repository.put_artifact(b"{}", "application/json")
    with pytest.raises(ConflictError, match=r"'application/json' stored, 'text/plain' given"):
        repository.put_artifact(b"{}", "text/plain")
    assert repository.get_artifact(sha256).media_type == "application/json"


def test_unknown_ids_are_not_found(filled: SqlRepository) -> None:
    for get in (filled.get_artifact, filled.get_model, filled.get_calibration):
        with pytest.raises(NotFoundError, match=r"'missing'"):
            get("missing")


def test_model_round_trips(repository: SqlRepository) -> None:
    repository.put_artifact(RANKING, SAFETENSORS)
    stored = repository.add_model(model())
    assert stored == model()
    assert repository.get_model("m") == model()
    assert stored.created_at.tzinfo is UTC


def test_model_needs_its_ranking(repository: SqlRepository) -> None:
    with pytest.raises(NotFoundError, match=RANKING_SHA256):
        repository.add_model(model())
    assert repository.list_models() == []


def test_the_origin_of_a_ranking_is_noted_once_it_is_known(filled: SqlRepository) -> None:
    stored = filled.get_model("m")
    assert stored.ranking_origin == RankingOrigin("activations", "c")
    other = dataclasses.replace(stored, ranking_origin=RankingOrigin(WEIGHTS))
    assert filled.add_model(other) == stored  # two origins may give one ranking: the first stays
    unknown = dataclasses.replace(model("other"), ranking_origin=None)
    assert filled.add_model(unknown) == unknown
    known = dataclasses.replace(unknown, ranking_origin=RankingOrigin(WEIGHTS))
    assert filled.add_model(known) == known
    assert filled.add_model(unknown) == known
    assert filled.get_model("other") == known


def test_equal_model_returns_the_stored_one(filled: SqlRepository) -> None:
    later = model(created_at=MORNING + timedelta(days=1))
    assert filled.add_model(later).created_at == MORNING
    assert len(filled.list_models()) == 1


def test_a_checkpoint_may_move(filled: SqlRepository) -> None:
    moved = dataclasses.replace(model(), path="/elsewhere")
    later = dataclasses.replace(moved, created_at=MORNING + timedelta(days=1))
    assert filled.add_model(later) == moved
    assert filled.get_model("m") == moved
    assert filled.list_models() == [moved]


@pytest.mark.parametrize(
    "change", [{"ranking_sha256": hashlib.sha256(b"other").hexdigest()}, {"weights_sha256": "b" * 64}]
)
def test_other_model_under_a_taken_id_is_a_conflict(filled: SqlRepository, change: dict[str, Any]) -> None:
    filled.put_artifact(b"other", SAFETENSORS)
    with pytest.raises(ConflictError, match=f"m: another {next(iter(change))}"):
        filled.add_model(dataclasses.replace(model(), **change))
    assert filled.get_model("m") == model()


def test_models_are_listed_oldest_first(filled: SqlRepository) -> None:
    filled.add_model(model("newest", MORNING + timedelta(microseconds=1)))
    filled.add_model(model("oldest", MORNING - timedelta(days=400)))
    assert [m.id for m in filled.list_models()] == ["oldest", "m", "newest"]


def test_times_of_any_zone_come_back_as_the_same_moment_in_utc(filled: SqlRepository) -> None:
    there = datetime(2025, 6, 1, 1, 0, tzinfo=timezone(timedelta(hours=9)))
    filled.add_model(model("tokyo", there))
    stored = filled.get_model("tokyo").created_at
    assert (stored, stored.tzinfo) == (datetime(2025, 5, 31, 16, 0, tzinfo=UTC), UTC)


def test_time_without_zone_is_refused(filled: SqlRepository) -> None:
    with pytest.raises(InputError, match="must have a time zone"):
        filled.add_model(model("naive", datetime(2025, 6, 1)))


def test_calibration_round_trips_and_is_immutable(repository: SqlRepository) -> None:
    assert repository.add_calibration(calibration()) == calibration()
    assert repository.add_calibration(calibration(created_at=MORNING + timedelta(1))) == calibration()
    renamed = dataclasses.replace(calibration(), name="renamed.json")
    assert repository.add_calibration(renamed) == calibration()
    with pytest.raises(ConflictError, match="c: another num_conversations"):
        repository.add_calibration(dataclasses.replace(calibration(), num_conversations=33))
    assert repository.get_calibration("c") == calibration()


def test_text_that_no_database_can_hold_is_refused(filled: SqlRepository) -> None:
    with pytest.raises(InputError, match="a value cannot be stored"):
        filled.add_model(dataclasses.replace(model("odd"), path="/models/\udcff"))


def test_any_other_text_is_held(filled: SqlRepository) -> None:
    odd = dataclasses.replace(model("'; DROP TABLE models; --"), path="/mödels/\U0001f9e0/%s ?:x")
    assert filled.add_model(odd) == odd
    assert filled.get_model(odd.id) == odd
