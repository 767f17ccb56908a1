"""Data stores: one suite over a folder, an S3 that moto plays, and the other file systems of fsspec."""

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import fsspec
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from pruning.errors import DatasetError, InputError, MissingExtraError, NotFoundError
from storage.data_store import DataStore, DataStoreUnavailableError, FolderStore, RemoteStore, open_store

CONTENT = b"conversations" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
BUCKET = "a-bucket"


@pytest.fixture(scope="module")
def s3() -> Iterator[s3fs.S3FileSystem]:
    """A server that speaks S3, which every store under s3:// finds, and one bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "id")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        system = s3fs.S3FileSystem()
        system.mkdir(BUCKET)
        yield system
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(params=["folder", "memory", "local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DataStore]:
    if request.param == "folder":
        yield open_store(str(tmp_path / "store"))
    elif request.param == "local":
        yield open_store(f"file://{tmp_path / 'store'}")
    elif request.param == "memory":
        yield open_store("memory://lop/store")
        fsspec.filesystem("memory").store.clear()
    else:
        system = request.getfixturevalue("s3")
        yield open_store(f"s3://{BUCKET}/lop")
        if system.exists(f"{BUCKET}/lop"):
            system.rm(f"{BUCKET}/lop", recursive=True)


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


def test_what_is_put_again_is_young_again(store: DataStore, source: Path, tmp_path: Path) -> None:
    store.put(source)
    assert store.stored_at("0" * 64) is None
    first = store.stored_at(SHA256)
    assert first is not None
    assert abs(datetime.now(UTC) - first) < timedelta(minutes=1)
    time.sleep(1.1)  # S3 tells seconds
    store.put(source)
    again = store.stored_at(SHA256)
    assert again is not None
    assert again > first
    store.fetch(SHA256, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == CONTENT


def test_what_is_removed_is_gone_and_can_be_put_again(store: DataStore, source: Path, tmp_path: Path) -> None:
    store.put(source)
    store.put(source)
    store.remove("0" * 64)  # which was never there
    store.remove(SHA256)
    store.remove(SHA256)
    assert not store.has(SHA256)
    with pytest.raises(NotFoundError):
        store.fetch(SHA256, tmp_path / "copy")
    assert store.put(source) == SHA256
    assert store.has(SHA256)


def test_what_is_not_there(store: DataStore, source: Path, tmp_path: Path) -> None:
    store.put(source)  # so that a folder is there itself
    with pytest.raises(NotFoundError, match="LOP_DATA_STORE"):
        store.fetch("0" * 64, tmp_path / "copy")
    for name in ("", "../x", "A" * 64, "0" * 63):
        with pytest.raises(InputError, match="64 hex digits"):
            store.has(name)


def test_a_damaged_file_is_told(tmp_path: Path, source: Path) -> None:
    store = FolderStore(tmp_path / "store")
    store.put(source)
    (tmp_path / "store" / SHA256[:2] / SHA256).write_bytes(CONTENT[:-1])
    with pytest.raises(DatasetError, match="must have it"):
        store.fetch(SHA256, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_transfer_that_was_cut_is_done_again(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, copied = FolderStore(tmp_path / "store"), shutil.copyfileobj
    store.put(source)
    calls = 0

    def cut(content: IO[bytes], out: IO[bytes], length: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            out.write(content.read(100))
        else:
            copied(content, out, length)

    monkeypatch.setattr("storage.data_store.shutil.copyfileobj", cut)
    store.fetch(SHA256, tmp_path / "copy")
    assert ((tmp_path / "copy").read_bytes(), calls) == (CONTENT, 2)


def test_a_folder_that_is_not_mounted_has_lost_nothing(tmp_path: Path, source: Path) -> None:
    store = FolderStore(tmp_path / "store")
    store.put(source)
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    with pytest.raises(DataStoreUnavailableError, match="LOP_DATA_STORE"):
        store.fetch(SHA256, tmp_path / "copy")
    with pytest.raises(DataStoreUnavailableError, match="LOP_DATA_STORE"):
        store.remove(SHA256)
    (tmp_path / "elsewhere").rename(tmp_path / "store")
    with pytest.raises(DataStoreUnavailableError, match="No such file"):  # of the target's folder
        store.fetch(SHA256, tmp_path / "none" / "copy")


def test_a_store_that_cannot_be_written(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataStoreUnavailableError, match="LOP_DATA_STORE"):
        FolderStore(tmp_path / "file").put(source)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("storage.data_store.shutil.copyfileobj", full)
    with pytest.raises(DataStoreUnavailableError, match="No space left on device"):
        FolderStore(tmp_path / "store").put(source)
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


def test_what_can_be_written_to_is_checked(store: DataStore) -> None:
    store.check()
    store.check()


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EACCES, errno.EIO])
def test_a_folder_that_cannot_even_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A file server that is gone: `Path.exists` raises for most numbers."""

    def gone(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("pathlib.Path.stat", gone)
    with pytest.raises(DataStoreUnavailableError, match="LOP_DATA_STORE"):
        FolderStore(tmp_path / "store").check()


def test_a_bucket_that_is_not_there_is_told_and_not_made(s3: s3fs.S3FileSystem, source: Path, tmp_path: Path) -> None:
    store = open_store("s3://mistyped/lop")
    calls: list[Callable[[], Any]] = [store.check, lambda: store.put(source)]
    for call in calls:
        with pytest.raises(DataStoreUnavailableError, match="no mistyped"):
            call()
    with pytest.raises(NotFoundError):
        store.fetch(SHA256, tmp_path / "copy")
    assert s3.ls("") == [BUCKET]


class NoKeysError(Exception):
    """As botocore's: no OSError."""


def test_whatever_an_object_store_raises_is_told(source: Path, tmp_path: Path) -> None:
    class Closed:
        def __getattr__(self, name: str) -> Any:
            raise NoKeysError("Unable to locate credentials")

    store = RemoteStore(Closed(), "bucket/lop")
    calls: list[Callable[[], Any]] = [
        store.check,
        lambda: store.put(source),
        lambda: store.has(SHA256),
        lambda: store.fetch(SHA256, tmp_path / "copy"),
    ]
    for call in calls:
        with pytest.raises(DataStoreUnavailableError, match=r"Unable to locate credentials.*keys of the object store"):
            call()


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((InputError, MissingExtraError)):
        open_store("nonsense://x")
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(MissingExtraError, match=r"lop-service\[store\]"):
        open_store("s3://bucket/lop")
