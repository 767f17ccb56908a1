"""Data stores: one suite over a folder and over a file system of fsspec."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pruning.errors import InputError, MissingExtraError, NotFoundError, StorageUnavailableError
from storage.data_store import DataStore, FolderStore, RemoteStore, open_store

CONTENT = b"conversations" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DataStore]:
    if request.param == "folder":
        yield open_store(str(tmp_path / "store"))
        return
    fsspec = pytest.importorskip("fsspec")
    opened = open_store("memory://lop/store")
    assert isinstance(opened, RemoteStore)
    yield opened
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return path


def test_what_is_put_can_be_fetched(store: DataStore, source: Path, tmp_path: Path) -> None:
    assert not store.has(SHA256)
    assert [store.put(source), store.put(source)] == [SHA256, SHA256]
    assert store.has(SHA256)
    store.fetch(SHA256, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == CONTENT


def test_what_is_not_there(store: DataStore, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="LOP_DATA_STORE"):
        store.fetch("0" * 64, tmp_path / "copy")
    for name in ("", "../x", "A" * 64, "0" * 63):
        with pytest.raises(InputError, match="64 hex digits"):
            store.has(name)


def test_a_damaged_file_is_told(tmp_path: Path, source: Path) -> None:
    store = FolderStore(tmp_path / "store")
    store.put(source)
    (tmp_path / "store" / SHA256[:2] / SHA256).write_bytes(CONTENT[:-1])
    with pytest.raises(StorageUnavailableError, match="must have it"):
        store.fetch(SHA256, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_store_that_cannot_be_written(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageUnavailableError, match="LOP_DATA_STORE"):
        FolderStore(tmp_path / "file").put(source)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("storage.data_store.shutil.copyfileobj", full)
    with pytest.raises(StorageUnavailableError, match="No space left on device"):
        FolderStore(tmp_path / "store").put(source)
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((InputError, MissingExtraError)):
        open_store("nonsense://x")
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(MissingExtraError, match=r"lop-service\[store\]"):
        open_store("s3://bucket/lop")
