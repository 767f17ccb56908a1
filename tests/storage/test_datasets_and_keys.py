"""Records of data sets and keys."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from pruning.errors import ConflictError, NotFoundError
from storage.records import KeyScope
from storage.sql_repository import SqlRepository
from tests.storage.examples import MORNING, dataset, key


def test_data_sets_are_stored_once(repository: SqlRepository) -> None:
    assert repository.add_dataset(dataset()) == dataset()
    renamed = replace(dataset(), name="another name", added_by="another", created_at=datetime.now(UTC))
    assert repository.add_dataset(renamed) == dataset()
    other = replace(dataset("e" * 64), created_at=MORNING + timedelta(hours=1))
    repository.add_dataset(other)
    assert repository.list_datasets() == [dataset(), other]
    assert repository.get_dataset(other.id) == other
    with pytest.raises(NotFoundError, match="POST /v1/datasets"):
        repository.get_dataset("f" * 64)


def test_keys_are_found_used_and_revoked(repository: SqlRepository) -> None:
    assert not repository.has_keys()
    stored = repository.add_key(key(expires_at=MORNING + timedelta(days=30), limit="10/minute"))
    assert repository.find_key(stored.id) == stored
    assert repository.find_key("another") is None
    with pytest.raises(ConflictError):
        repository.add_key(key())
    used = MORNING + timedelta(hours=3)
    repository.note_key_use(stored.id, used)
    assert repository.list_keys() == [replace(stored, last_used_at=used)]
    revoked = repository.revoke_key(stored.id)
    assert revoked.revoked_at is not None
    assert repository.revoke_key(stored.id) == revoked
    assert repository.has_keys()
    with pytest.raises(NotFoundError, match="lop key list"):
        repository.revoke_key("another")


def test_scopes_are_a_ladder() -> None:
    allowed = {scope.value: [needed.value for needed in KeyScope if scope.allows(needed)] for scope in KeyScope}
    assert allowed == {
        "read": ["read"],
        "plan": ["read", "plan"],
        "run": ["read", "plan", "run"],
        "admin": ["read", "plan", "run", "admin"],
    }
