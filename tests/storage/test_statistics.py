"""Statistics: one a (model, kind, calibration set), immutable, the latest first."""

import dataclasses
from datetime import timedelta
from typing import Any

import pytest

from pruning.errors import ConflictError, NotFoundError
from storage.sql_repository import SqlRepository
from tests.storage.examples import MORNING, RANKING_SHA256, calibration, model, statistics


def test_statistics_round_trip_and_are_stored_once(filled: SqlRepository) -> None:
    assert filled.add_statistics(statistics()) == statistics()
    later = dataclasses.replace(statistics(), created_at=MORNING + timedelta(hours=1))
    assert filled.add_statistics(later) == statistics()
    assert filled.list_statistics("m") == [statistics()]
    assert filled.latest_statistics("m", "activations") == statistics()


def test_other_bytes_under_the_same_key_are_a_conflict(filled: SqlRepository) -> None:
    filled.add_statistics(statistics())
    with pytest.raises(ConflictError, match=r"statistics is stored with other content.*m, activations, c: another"):
        filled.add_statistics(dataclasses.replace(statistics(), sha256=RANKING_SHA256))
    assert filled.list_statistics("m") == [statistics()]


def test_the_latest_is_by_created_at_and_of_one_model_and_kind(filled: SqlRepository) -> None:
    filled.add_model(model("other"))
    filled.add_calibration(calibration("d"))
    assert filled.latest_statistics("m", "activations") is None
    newest = filled.add_statistics(statistics(calibration_id="d", created_at=MORNING + timedelta(hours=1)))
    oldest = filled.add_statistics(statistics())
    another = filled.add_statistics(statistics("gradients", created_at=MORNING + timedelta(hours=2)))
    filled.add_statistics(statistics(model_id="other", created_at=MORNING + timedelta(hours=3)))
    assert filled.latest_statistics("m", "activations") == newest
    assert filled.latest_statistics("m", "gradients") == another
    assert filled.latest_statistics("m", "zeroth-order") is None
    assert filled.list_statistics("m") == [oldest, newest, another]
    assert filled.list_statistics("none") == []


@pytest.mark.parametrize("field", ["model_id", "calibration_id", "sha256"])
def test_what_statistics_refer_to_must_be_stored(filled: SqlRepository, field: str) -> None:
    missing: dict[str, Any] = {field: "missing"}
    with pytest.raises(NotFoundError, match="'missing'"):
        filled.add_statistics(dataclasses.replace(statistics(), **missing))
    assert filled.list_statistics("m") == []
