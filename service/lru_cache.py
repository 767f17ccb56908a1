"""Values that are dear to make and never change, kept in memory while they are asked for."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Event, Lock
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LruCache(Generic[Key, Value]):
    """At most `capacity` values, the least recently used one leaves first. Thread-safe.

    A value is made outside of the lock: of threads that race for one, one makes it and the others wait; who asks for
    another does not. If it cannot be made, each of them tries for itself: the cause may be gone by then.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._in_the_making: dict[Key, Event] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._values)

    def forget(self, key: Key) -> None:
        """Make it anew the next time, if it is there."""
        with self._lock:
            self._values.pop(key, None)

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value under `key`, from `make` if it is not there; what `make` raises is not kept.

        `make` must not ask for the same key.
        """
        while True:
            with self._lock:
                if key in self._values:
                    self._values.move_to_end(key)
                    return self._values[key]
                made = self._in_the_making.get(key)
                if made is None:
                    mine = self._in_the_making[key] = Event()
                    break
            made.wait()
        try:
            value = make()
            with self._lock:
                self._values[key] = value
                while len(self._values) > self._capacity:
                    self._values.popitem(last=False)
            return value
        finally:
            with self._lock:
                del self._in_the_making[key]
            mine.set()
