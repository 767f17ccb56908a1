"""Finished searches: stored once, replaced by their validation, found by model."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from pruning.errors import InputError, NotFoundError
from pruning.planning.ffn_spaces import ffn_space
from pruning.planning.space import Space
from storage.sql_repository import SqlRepository
from tests.storage.examples import SPACE, model


def test_a_search_that_ends_the_same_again_is_recorded_once(filled: SqlRepository) -> None:
    first = filled.record_search("m", {"seed": 0}, {"kl": 0.1 + 0.2})
    assert filled.record_search("m", {"seed": 0}, {"kl": 0.1 + 0.2}) == first
    others = [filled.record_search("m", {"seed": 1}, {"kl": 0.3}), filled.record_search("m", {"seed": 0}, {"kl": 0.3})]
    assert filled.list_searches() == [first, *others]
    assert filled.list_search_ids("m") == (first.id, others[0].id, others[1].id)


def test_a_validation_replaces_the_equal_search_and_stays(filled: SqlRepository) -> None:
    settings, result = {"seed": 0}, {"kl": 0.5}
    plain, other = filled.record_search("m", settings, result), filled.record_search("m", {"seed": 1}, result)
    validated = filled.record_search("m", settings, result, validation={"id": "v", "metrics": [0.6]})
    assert validated.result == {"kl": 0.5, "validation": {"id": "v", "metrics": [0.6]}}
    assert filled.list_searches() == [other, validated]
    assert validated.id != plain.id
    # Run again, with that validation or without one.
    assert filled.record_search("m", settings, result) == validated
    assert filled.record_search("m", settings, result, validation={"id": "v", "metrics": [0.6]}) == validated
    latest = filled.record_search("m", settings, result, validation={"id": "w", "metrics": [0.7]})
    assert filled.list_search_ids("m") == (other.id, latest.id)
    assert result == {"kl": 0.5}


def test_equal_searches_in_a_space_that_only_one_says_are_one(filled: SqlRepository) -> None:
    old = filled.record_search("m", {}, {"kl": 0.5})
    assert old.space is None
    assert filled.record_search("m", {}, {"kl": 0.5}, space=SPACE) == old
    validated = filled.record_search("m", {}, {"kl": 0.5}, space=SPACE, validation={"id": "v"})
    assert (validated.space, validated.result) == (SPACE.document(), {"kl": 0.5, "validation": {"id": "v"}})
    assert filled.record_search("m", {}, {"kl": 0.5}) == validated
    assert filled.list_searches() == [validated]
    other = ffn_space([[32, 64]] * 2)
    assert filled.record_search("m", {}, {"kl": 0.5}, space=other).space == other.document()
    assert len(filled.list_searches()) == 2


def test_threads_that_validate_one_search_agree(filled: SqlRepository) -> None:
    def record(number: int) -> str:
        validation = {"id": "v"} if number % 2 else None
        return filled.record_search("m", {"seed": 0}, {"kl": 0.5}, validation=validation).id

    with ThreadPoolExecutor(6) as pool:
        recorded = list(pool.map(record, range(12)))
    (search,) = filled.list_searches()
    assert search.result == {"kl": 0.5, "validation": {"id": "v"}}
    assert recorded[-1] == search.id


def test_threads_that_record_one_search_agree(filled: SqlRepository) -> None:
    with ThreadPoolExecutor(6) as pool:
        recorded = list(pool.map(lambda _: filled.record_search("m", {"seed": 0}, {"kl": 0.5}), range(12)))
    assert {search.id for search in recorded} == {filled.list_searches()[0].id}
    assert len(filled.list_search_ids("m")) == 1


def test_recorded_search_needs_its_model_and_json(filled: SqlRepository) -> None:
    with pytest.raises(NotFoundError, match="'missing'"):
        filled.record_search("missing", {}, {})
    with pytest.raises(InputError, match="settings of a search must be a JSON document"):
        filled.record_search("m", {"model": object()}, {})
    with pytest.raises(InputError, match="result of a search must be a JSON document"):
        filled.record_search("m", {}, {"kl": float("nan")})
    with pytest.raises(InputError, match="validation of a search must be a JSON document"):
        filled.record_search("m", {}, {}, validation={"kl": float("nan")})
    assert filled.list_searches() == []


def test_recorded_search_is_listed_as_it_was_stored(filled: SqlRepository) -> None:
    before = datetime.now(UTC)
    search = filled.record_search("m", {"search": {"seed": 0}}, {"targets": [{"widths": (8, 16)}]}, space=SPACE)
    assert search.model_id == "m"
    assert (search.settings, search.result) == ({"search": {"seed": 0}}, {"targets": [{"widths": [8, 16]}]})
    assert Space.from_document(search.space or {}).document() == SPACE.document()
    assert before <= search.created_at <= datetime.now(UTC)
    assert filled.list_searches() == [search]


def test_searches_of_one_model(filled: SqlRepository) -> None:
    filled.add_model(model("other"))
    own, foreign = filled.record_search("m", {}, {}), filled.record_search("other", {}, {})
    assert filled.list_searches("m") == [own]
    assert filled.list_searches() == [own, foreign]
    assert filled.list_search_ids("other") == (foreign.id,)
    assert filled.list_search_ids("nothing") == ()
