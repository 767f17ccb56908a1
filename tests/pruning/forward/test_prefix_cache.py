"""Which hidden states stay: the least recently used go first, and the bound holds."""

import torch

from pruning.forward.prefix_cache import PrefixCache

STATE_BYTES = 16


def make_cache(num_states: int, *, num_layers: int = 2) -> PrefixCache:
    return PrefixCache(num_states * STATE_BYTES, state_bytes=STATE_BYTES, num_layers=num_layers)


def state(value: float) -> torch.Tensor:
    return torch.full((1, 2, 2), value, dtype=torch.float32)


def test_the_deepest_known_prefix_is_found() -> None:
    cache = make_cache(10)
    cache.put((8,), state(1))
    cache.put((8, 16), state(2))
    layer, hidden = cache.longest((8, 16, 24))
    assert layer == 2
    assert hidden is not None
    assert hidden[0, 0, 0] == 2
    assert cache.longest((8, 24, 24))[0] == 1
    assert cache.longest((16, 16, 24)) == (0, None)


def test_a_whole_configuration_is_no_prefix_of_itself() -> None:
    cache = make_cache(10)
    cache.put((8, 16), state(1))
    assert cache.longest((8, 16)) == (0, None)


def test_the_least_recently_used_goes_first() -> None:
    cache = make_cache(2)
    cache.put((1,), state(1))
    cache.put((2,), state(2))
    assert cache.longest((1, 1))[0] == 1
    cache.put((3,), state(3))
    assert cache.num_bytes == 2 * STATE_BYTES
    assert [cache.longest((first, 1))[0] for first in (1, 2, 3)] == [1, 0, 1]


def test_what_is_kept_is_a_copy() -> None:
    cache = make_cache(1)
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


def test_a_bound_below_one_state_keeps_nothing() -> None:
    cache = PrefixCache(STATE_BYTES - 1, state_bytes=STATE_BYTES, num_layers=2)
    cache.put((1,), state(1))
    assert (cache.num_bytes, cache.longest((1, 1))) == (0, (0, None))


def test_few_states_are_those_of_every_so_many_layers() -> None:
    cache = make_cache(4, num_layers=9)  # 8 boundaries, room for two configurations at every fourth
    widths = (7,) * 9
    for layer in range(1, 9):
        cache.put(widths[:layer], state(layer))
    assert [layer for layer in range(1, 9) if cache.longest((*widths[:layer], 0))[0] == layer] == [4, 8]
    single = make_cache(1, num_layers=9)
    single.put(widths[:4], state(4))
    assert single.longest(widths)[0] == 4


def test_using_a_deep_prefix_keeps_the_shallow_ones_longer() -> None:
    cache = make_cache(3, num_layers=3)
    cache.put((1,), state(1))
    cache.put((1, 1), state(2))
    cache.put((2,), state(3))
    assert cache.longest((1, 1, 1))[0] == 2
    cache.put((3,), state(4))  # (2,) goes: (1,) was used by the way
    assert [cache.longest((first, 0, 0))[0] for first in (1, 2, 3)] == [1, 0, 1]
