"""What the tests of several benchmarks share."""

import multiprocessing

import pytest

from tests.forked import CONTEXT


@pytest.fixture
def quick_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that a benchmark spawns are forked from one that has imported everything."""
    monkeypatch.setattr(multiprocessing, "get_context", lambda _method: CONTEXT)
