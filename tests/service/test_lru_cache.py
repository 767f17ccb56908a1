from concurrent.futures import ThreadPoolExecutor
from functools import partial

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
