"""What tests of several commands look at."""

import pytest

from pruning.forward.tensor_store import TensorStore


@pytest.fixture
def spilled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of every tensor store that is closed from now on, the bytes that it had on the disk."""
    found: list[int] = []
    close = TensorStore.close

    def told(store: TensorStore) -> None:
        found.append(store.file_bytes)
        close(store)

    monkeypatch.setattr(TensorStore, "close", told)
    return found
