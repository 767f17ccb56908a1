"""Predictors."""

import dataclasses
from datetime import timedelta
from typing import Any

import pytest

from pruning.errors import ConflictError, InputError, NotFoundError
from storage.sql_repository import SqlRepository
from tests.storage.examples import MORNING, model, predictor


def test_predictor_round_trips_and_is_immutable(filled: SqlRepository) -> None:
    assert filled.add_predictor(predictor()) == predictor()
    assert filled.add_predictor(predictor()) == predictor()
    with pytest.raises(ConflictError, match=r"predictor is stored with other content.*p: another config"):
        filled.add_predictor(dataclasses.replace(predictor(), config={"num_layers": 3}))
    assert filled.get_predictor("p") == predictor()


def test_a_predictor_trained_again_is_the_latest_again(filled: SqlRepository) -> None:
    first = predictor("first", MORNING)
    filled.add_predictor(first)
    filled.add_predictor(predictor("second", MORNING + timedelta(hours=1)))
    again = dataclasses.replace(first, created_at=MORNING + timedelta(hours=2))
    assert filled.add_predictor(again) == again
    assert filled.latest_predictor("m") == again
    # An older date does not take that back.
    assert filled.add_predictor(first) == again


def test_config_is_compared_as_json(filled: SqlRepository) -> None:
    with_tuple = dataclasses.replace(predictor(), config={"shape": (1, 2)})
    assert filled.add_predictor(with_tuple).config == {"shape": [1, 2]}
    assert filled.add_predictor(with_tuple).config == {"shape": [1, 2]}


def test_handed_out_config_is_a_copy(filled: SqlRepository) -> None:
    filled.add_predictor(predictor()).config["num_layers"] = 99
    assert filled.get_predictor("p") == predictor()


def test_latest_is_by_created_at_and_of_one_model(filled: SqlRepository) -> None:
    filled.add_model(model("other"))
    assert filled.latest_predictor("m") is None
    assert filled.latest_predictor_id("m") is None
    newest = filled.add_predictor(predictor("new", MORNING + timedelta(hours=1)))
    filled.add_predictor(predictor("old", MORNING))
    foreign = filled.add_predictor(predictor("foreign", MORNING + timedelta(hours=2), "other"))
    assert filled.latest_predictor("m") == newest
    assert filled.latest_predictor_id("m") == newest.id
    assert filled.latest_predictor("other") == foreign
    assert [p.id for p in filled.list_predictors()] == ["old", "new", "foreign"]
    assert [p.id for p in filled.list_predictors("m")] == ["old", "new"]
    assert filled.list_predictor_spaces("m") == [(p.id, p.space) for p in filled.list_predictors("m")]
    assert filled.list_predictor_spaces("none") == []


@pytest.mark.parametrize("field", ["model_id", "weights_sha256"])
def test_what_a_predictor_refers_to_must_be_stored(filled: SqlRepository, field: str) -> None:
    missing: dict[str, Any] = {field: "missing"}
    with pytest.raises(NotFoundError, match="'missing'"):
        filled.add_predictor(dataclasses.replace(predictor(), **missing))
    assert filled.list_predictors() == []


def test_unknown_predictor(filled: SqlRepository) -> None:
    with pytest.raises(NotFoundError, match="'missing'"):
        filled.get_predictor("missing")


def test_config_must_be_json(filled: SqlRepository) -> None:
    with pytest.raises(InputError, match="the config of a predictor must be a JSON document"):
        filled.add_predictor(dataclasses.replace(predictor(), config={"rate": float("nan")}))
