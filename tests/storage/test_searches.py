"""Searches: queued, claimed by exactly one worker, taken over from a lost one, finished by its owner only."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from pruning.errors import InputError, NotFoundError
from pruning.planning.ffn_spaces import ffn_space
from pruning.planning.space import Space
from storage.records import SearchStatus
from storage.sql_repository import SqlRepository
from tests.storage.examples import SPACE, model, search_of

HOUR = timedelta(hours=1)
AT_ONCE = timedelta(0)


def test_new_search_is_queued(filled: SqlRepository) -> None:
    before = datetime.now(UTC)
    search = filled.add_search("m", {"num_simulations": 300, "widths": (8, 16)})
    assert search.settings == {"num_simulations": 300, "widths": [8, 16]}
    assert (search.model_id, search.status) == ("m", SearchStatus.QUEUED)
    assert (search.worker, search.heartbeat_at, search.result, search.error) == (None, None, None, None)
    assert before <= search.created_at <= datetime.now(UTC)
    assert search_of(filled, search.id) == search


def test_search_needs_its_model_and_json_settings(filled: SqlRepository) -> None:
    with pytest.raises(NotFoundError, match="'missing'"):
        filled.add_search("missing", {})
    with pytest.raises(InputError, match="settings of a search must be a JSON document"):
        filled.add_search("m", {"model": object()})
    assert filled.list_searches() == []


def test_unknown_search(filled: SqlRepository) -> None:
    assert not filled.heartbeat("missing", "w")
    assert not filled.finish_search("missing", "w")


def test_nothing_to_claim(filled: SqlRepository) -> None:
    assert filled.claim_search("w", stale_after=AT_ONCE) is None


def test_searches_are_claimed_oldest_first_and_once(filled: SqlRepository) -> None:
    queued = [filled.add_search("m", {"number": number}) for number in range(3)]
    claimed = [filled.claim_search(worker, stale_after=HOUR) for worker in ("a", "b", "a", "b")]
    assert [c and (c.id, c.worker, c.status) for c in claimed] == [
        (queued[0].id, "a", SearchStatus.RUNNING),
        (queued[1].id, "b", SearchStatus.RUNNING),
        (queued[2].id, "a", SearchStatus.RUNNING),
        None,
    ]
    assert claimed[0] is not None
    assert claimed[0].heartbeat_at is not None
    assert search_of(filled, queued[0].id) == claimed[0]


def test_list_by_status(filled: SqlRepository) -> None:
    first, second = filled.add_search("m", {}), filled.add_search("m", {})
    filled.claim_search("w", stale_after=HOUR)
    assert [s.id for s in filled.list_searches()] == [first.id, second.id]
    assert [s.id for s in filled.list_searches(status=SearchStatus.RUNNING)] == [first.id]
    assert [s.id for s in filled.list_searches(status=SearchStatus.QUEUED)] == [second.id]
    assert filled.list_searches(status=SearchStatus.DONE) == []


def test_search_of_a_lost_worker_is_taken_over(filled: SqlRepository) -> None:
    search = filled.add_search("m", {})
    filled.claim_search("lost", stale_after=HOUR)
    assert filled.claim_search("next", stale_after=HOUR) is None
    taken = filled.claim_search("next", stale_after=AT_ONCE)
    assert taken is not None
    assert (taken.id, taken.worker) == (search.id, "next")
    assert not filled.heartbeat(search.id, "lost")
    assert not filled.finish_search(search.id, "lost", result={"from": "the lost one"})
    assert search_of(filled, search.id) == taken
    assert filled.heartbeat(search.id, "next")


def test_heartbeat_moves_forward_and_keeps_the_search(filled: SqlRepository) -> None:
    search = filled.add_search("m", {})
    claimed = filled.claim_search("w", stale_after=HOUR)
    assert claimed is not None
    assert claimed.heartbeat_at is not None
    assert filled.heartbeat(search.id, "w")
    beaten = search_of(filled, search.id).heartbeat_at
    assert beaten is not None
    assert beaten > claimed.heartbeat_at
    assert filled.claim_search("thief", stale_after=HOUR) is None


def test_older_stale_search_goes_before_a_queued_one(filled: SqlRepository) -> None:
    stale = filled.add_search("m", {})
    filled.claim_search("lost", stale_after=HOUR)
    filled.add_search("m", {})
    claimed = filled.claim_search("w", stale_after=AT_ONCE)
    assert claimed is not None
    assert claimed.id == stale.id


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        ({"result": {"best_kl": 0.02}}, SearchStatus.DONE),
        ({}, SearchStatus.DONE),
        ({"error": "out of memory"}, SearchStatus.FAILED),
        ({"error": ""}, SearchStatus.FAILED),
        ({"error": "late", "result": {"best_kl": 0.5}}, SearchStatus.FAILED),
    ],
)
def test_finished_search_keeps_its_outcome(filled: SqlRepository, outcome: dict, status: SearchStatus) -> None:
    search = filled.add_search("m", {})
    filled.claim_search("w", stale_after=HOUR)
    assert not filled.finish_search(search.id, "other", **outcome)
    assert filled.finish_search(search.id, "w", **outcome)
    finished = search_of(filled, search.id)
    assert (finished.status, finished.result, finished.error) == (status, outcome.get("result"), outcome.get("error"))
    assert not filled.finish_search(search.id, "w", error="again")
    assert not filled.heartbeat(search.id, "w")
    assert filled.claim_search("w", stale_after=AT_ONCE) is None
    assert search_of(filled, search.id) == finished


def test_recorded_search_is_done_and_no_worker_takes_it(filled: SqlRepository) -> None:
    before = datetime.now(UTC)
    search = filled.record_search("m", {"search": {"seed": 0}}, {"targets": [{"widths": (8, 16)}]})
    assert (search.model_id, search.status) == ("m", SearchStatus.DONE)
    assert (search.settings, search.result) == ({"search": {"seed": 0}}, {"targets": [{"widths": [8, 16]}]})
    assert (search.worker, search.heartbeat_at, search.error) == (None, None, None)
    assert before <= search.created_at <= datetime.now(UTC)
    assert filled.claim_search("w", stale_after=AT_ONCE) is None
    assert not filled.heartbeat(search.id, "w")
    assert not filled.finish_search(search.id, "w", result={})
    assert search_of(filled, search.id) == search


def test_a_search_that_ends_the_same_again_is_recorded_once(filled: SqlRepository) -> None:
    first = filled.record_search("m", {"seed": 0}, {"kl": 0.1 + 0.2})
    assert filled.record_search("m", {"seed": 0}, {"kl": 0.1 + 0.2}) == first
    others = [filled.record_search("m", {"seed": 1}, {"kl": 0.3}), filled.record_search("m", {"seed": 0}, {"kl": 0.3})]
    assert filled.list_searches() == [first, *others]
    assert filled.list_search_ids("m", SearchStatus.DONE) == (first.id, others[0].id, others[1].id)


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
    assert filled.list_search_ids("m", SearchStatus.DONE) == (other.id, latest.id)
    assert result == {"kl": 0.5}


def test_a_search_says_its_space(filled: SqlRepository) -> None:
    assert filled.add_search("m", {}).space is None
    queued = filled.add_search("m", {"seed": 1}, space=SPACE)
    assert queued.space == SPACE.document()
    assert Space.from_document(queued.space or {}).document() == SPACE.document()
    assert search_of(filled, queued.id) == queued
    own, other = (filled.claim_search("w", stale_after=HOUR) for _ in range(2))
    assert own is not None
    assert other is not None
    assert (own.space, other.space) == (None, queued.space)
    assert filled.finish_search(queued.id, "w", result={})
    assert search_of(filled, queued.id).space == queued.space


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


def test_a_validation_replaces_no_search_of_the_queue(filled: SqlRepository) -> None:
    queued = filled.add_search("m", {"seed": 0})
    recorded = filled.record_search("m", {"seed": 0}, {"kl": 0.5}, validation={"id": "v"})
    assert [search.id for search in filled.list_searches()] == [queued.id, recorded.id]


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
    assert len(filled.list_search_ids("m", SearchStatus.DONE)) == 1


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


def test_searches_of_one_model(filled: SqlRepository) -> None:
    filled.add_model(model("other"))
    own, done = filled.add_search("m", {}), filled.record_search("m", {}, {})
    foreign = filled.record_search("other", {}, {})
    assert filled.list_searches(model_id="m") == [own, done]
    assert filled.list_searches(model_id="m", status=SearchStatus.DONE) == [done]
    assert filled.list_searches(model_id="other") == [foreign]
    assert filled.list_search_ids("m", SearchStatus.QUEUED) == (own.id,)
    assert filled.list_search_ids("m", SearchStatus.DONE) == (done.id,)
    assert filled.list_search_ids("other", SearchStatus.QUEUED) == ()


def test_queued_search_cannot_be_finished(filled: SqlRepository) -> None:
    search = filled.add_search("m", {})
    assert not filled.finish_search(search.id, "w", result={})
    assert search_of(filled, search.id) == search


def test_result_must_be_json_and_stale_after_positive(filled: SqlRepository) -> None:
    search = filled.add_search("m", {})
    filled.claim_search("w", stale_after=HOUR)
    with pytest.raises(InputError, match="the result of a search must be a JSON document"):
        filled.finish_search(search.id, "w", result={"kl": float("inf")})
    with pytest.raises(InputError, match="stale_after must not be negative"):
        filled.claim_search("w", stale_after=-HOUR)
    assert search_of(filled, search.id).status is SearchStatus.RUNNING


def test_threads_claim_every_search_once(filled: SqlRepository) -> None:
    queued = [filled.add_search("m", {}).id for _ in range(24)]
    barrier = threading.Barrier(6)

    def work(thread: int) -> list[str]:
        barrier.wait()
        claimed = []
        while (search := filled.claim_search(f"worker-{thread}", stale_after=HOUR)) is not None:
            claimed.append(search.id)
        return claimed

    with ThreadPoolExecutor(6) as pool:
        claims = [search_id for claimed in pool.map(work, range(6)) for search_id in claimed]
    assert sorted(claims) == sorted(queued)
