from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier, Event

import pytest

from service.lru_cache import LruCache


def test_a_value_is_made_once_and_the_least_recently_used_leaves() -> None:
    cache: LruCache[str, str] = LruCache(2)
    made: list[str] = []

    def make(key: str) -> str:
        made.append(key)
        return key.upper()

    assert [cache.get(key, partial(make, key)) for key in "abab"] == ["A", "B", "A", "B"]
    cache.get("a", lambda: make("a"))
    cache.get("c", lambda: make("c"))  # b leaves
    assert (made, len(cache)) == (["a", "b", "c"], 2)
    cache.get("a", lambda: make("a"))
    cache.get("b", lambda: make("b"))
    assert made == ["a", "b", "c", "b"]


def test_none_is_a_value_and_an_error_is_not() -> None:
    cache: LruCache[int, int | None] = LruCache(1)
    with pytest.raises(ZeroDivisionError):
        cache.get(1, lambda: 1 // 0)
    assert cache.get(1, lambda: None) is None
    assert cache.get(1, lambda: 1 // 0) is None


def test_threads_agree() -> None:
    cache: LruCache[int, list[int]] = LruCache(4)
    with ThreadPoolExecutor(8) as pool:
        values = list(pool.map(lambda number: cache.get(number % 8, lambda: [number % 8]), range(400)))
    assert all(value == [number % 8] for number, value in enumerate(values))
    assert len(cache) == 4


def test_a_value_is_made_once_and_only_those_who_want_it_wait() -> None:
    cache: LruCache[str, str] = LruCache(4)
    cache.get("warm", lambda: "there")
    begun, release, made = Event(), Event(), []

    def make() -> str:
        made.append("cold")
        begun.set()
        assert release.wait(30)
        return "made"

    with ThreadPoolExecutor(4) as pool:
        racing = [pool.submit(cache.get, "cold", make) for _ in range(4)]
        assert begun.wait(30)
        # In this thread, while "cold" is made: a wait would never end.
        assert cache.get("warm", lambda: "anew") == "there"
        assert cache.get("another", lambda: "new") == "new"
        assert not any(x.done() for x in racing)
        release.set()
        assert [x.result() for x in racing] == ["made"] * 4
    assert made == ["cold"]


def test_those_who_waited_for_what_failed_try_for_themselves() -> None:
    cache: LruCache[str, str] = LruCache(4)
    tries: list[int] = []
    start = Barrier(4)

    def make() -> str:
        tries.append(len(tries))
        if len(tries) < 3:
            raise OSError("away")
        return "back"

    def ask() -> str:
        start.wait(30)
        try:
            return cache.get("key", make)
        except OSError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(ask) for _ in range(4)]
        assert sorted(x.result() for x in answers) == ["away", "away", "back", "back"]
    assert tries == [0, 1, 2]
