"""Which hidden states stay: the least recently used go first, and the bound holds."""

import torch

from pruning.prefix_cache import PrefixCache

STATE_BYTES = 16


def state(value: float) -> torch.Tensor:
    return torch.full((1, 2, 2), value, dtype=torch.float32)


def test_the_deepest_known_prefix_is_found() -> None:
    cache = PrefixCache(10 * STATE_BYTES)
    cache.put((8,), state(1))
    cache.put((8, 16), state(2))
    layer, hidden = cache.longest((8, 16, 24))
    assert layer == 2
    assert hidden is not None
    assert hidden[0, 0, 0] == 2
    assert cache.longest((8, 24, 24))[0] == 1
    assert cache.longest((16, 16, 24)) == (0, None)


def test_a_whole_configuration_is_no_prefix_of_itself() -> None:
    cache = PrefixCache(10 * STATE_BYTES)
    cache.put((8, 16), state(1))
    assert cache.longest((8, 16)) == (0, None)


def test_the_least_recently_used_goes_first() -> None:
    cache = PrefixCache(2 * STATE_BYTES)
    cache.put((1,), state(1))
    cache.put((2,), state(2))
    assert cache.longest((1, 1))[0] == 1
    cache.put((3,), state(3))
    assert cache.num_bytes == 2 * STATE_BYTES
    assert [cache.longest((first, 1))[0] for first in (1, 2, 3)] == [1, 0, 1]


def test_what_is_kept_is_a_copy() -> None:
    cache = PrefixCache(STATE_BYTES)
    first, second = state(1), state(2)
    cache.put((1,), first)
    first.zero_()
    _, kept = cache.longest((1, 1))
    assert kept is not None
    assert kept[0, 0, 0] == 1
    cache.put((2,), second)
    _, reused = cache.longest((2, 1))
    assert reused is kept  # the buffer of the one that went
    assert second.data_ptr() != reused.data_ptr()
    assert reused[0, 0, 0] == 2


def test_a_state_over_the_bound_is_not_kept() -> None:
    cache = PrefixCache(STATE_BYTES - 1)
    cache.put((1,), state(1))
    assert (cache.num_bytes, cache.longest((1, 1))) == (0, (0, None))
