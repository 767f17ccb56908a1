"""Where the content of data sets lies: whole files, each under its sha256, never changed.

A folder by default, which servers and workers share; or whatever `fsspec` has an address for, such as s3://bucket/lop.
"""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from pruning.errors import DatasetError, InputError, LopError, NotFoundError, StorageUnavailableError
from pruning.missing_packages import missing_extra
from pruning.reasons import reason_of
from storage.room import try_folder

_AGAIN = ".again"
"""Ends the name of what is written when a file of an object store is put once more."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


class DataStoreUnavailableError(StorageUnavailableError):
    """The data store does not answer, or has no room. The database may be well."""


class DataStore(Protocol):
    """Files by their sha256. Any thread and any process may call any method at any time.

    A file is there as a whole or not at all; putting it again changes nothing but its age. Every method raises
    DataStoreUnavailableError if the store cannot be reached, read or written, a full disk included.
    """

    def put(self, source: Path) -> str:
        """Store a copy of the file `source`; returns its sha256."""

    def has(self, sha256: str) -> bool:
        """Whether there is such a file."""

    def fetch(self, sha256: str, target: Path) -> None:
        """Copy the file to `target`, its content checked.

        Raises NotFoundError if there is none, DatasetError if it is damaged.
        """

    def stored_at(self, sha256: str) -> datetime | None:
        """When it was put last, in UTC; None if there is no such file."""

    def remove(self, sha256: str) -> None:
        """Remove the file, if there is one. Who reads it meanwhile has all of it, or NotFoundError."""

    def check(self) -> None:
        """Whether it can be reached and written to; what is in it is not looked at."""


def open_store(place: str) -> DataStore:
    """The store at `place`: a folder, which is made when something is put there, or an address with a scheme.

    Raises MissingExtraError if the address needs a package that is not installed, InputError if it is none.
    """
    if "://" not in place:
        return FolderStore(Path(place))
    try:
        import fsspec

        system, root = fsspec.url_to_fs(place)
    except ImportError as error:
        address = f"{place.partition('://')[0]}://...: {reason_of(error)}"
        raise missing_extra("store", "a data store that is not a folder needs s3fs", values=address) from error
    except ValueError as error:
        raise InputError("a data store is a folder or an address", values=reason_of(error)) from error
    return RemoteStore(system, root)


class FolderStore:
    """A `DataStore` in a folder: the first two digits of the sha256 are a folder each."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, source: Path) -> str:
        with _store_errors(str(self._root)):
            sha256 = _digest(source)
            path = self._path(sha256)
            with suppress(FileNotFoundError):
                os.utime(path)
                return sha256
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".draft-")
            try:
                with os.fdopen(handle, "wb") as out, source.open("rb") as content:
                    shutil.copyfileobj(content, out, 2**20)
                    out.flush()
                    os.fsync(out.fileno())
                Path(draft).replace(path)
            except BaseException:
                with suppress(OSError):
                    Path(draft).unlink()
                raise
            return sha256

    def has(self, sha256: str) -> bool:
        with _store_errors(str(self._root)):
            return self._path(sha256).is_file()

    def fetch(self, sha256: str, target: Path) -> None:
        with _store_errors(str(self._root)):
            for is_last in (False, True):
                try:
                    content = self._path(sha256).open("rb")
                except FileNotFoundError as error:
                    if not self._root.is_dir():
                        raise  # nothing is lost: the folder itself is not there, such as a share before it is mounted
                    raise _absent(sha256) from error
                with content, target.open("wb") as out:
                    shutil.copyfileobj(content, out, 2**20)
                if _is_whole(target, sha256, is_last=is_last):
                    return

    def stored_at(self, sha256: str) -> datetime | None:
        with _store_errors(str(self._root)):
            try:
                return datetime.fromtimestamp(self._path(sha256).stat().st_mtime, UTC)
            except FileNotFoundError:
                if not self._root.is_dir():  # as in `fetch`
                    raise
                return None

    def remove(self, sha256: str) -> None:
        with _store_errors(str(self._root)):
            try:
                self._path(sha256).unlink()
            except FileNotFoundError:
                if not self._root.is_dir():  # as in `fetch`
                    raise

    def check(self) -> None:
        with _store_errors(str(self._root)):
            root = self._root.absolute()
            there = _nearest(root)
            if not there.is_dir():
                raise NotADirectoryError(f"{there} is no folder")
            if not os.access(there, os.W_OK | os.X_OK):
                raise PermissionError(f"{there} cannot be written to")
            if there == root:  # in a folder above, nothing of ours is to be found
                try_folder(there)

    def _path(self, sha256: str) -> Path:
        _check_name(sha256)
        return self._root / sha256[:2] / sha256


class RemoteStore:
    """A `DataStore` in a file system of `fsspec`, whose `put_file` makes a file as a whole, as object stores do."""

    def __init__(self, system: Any, root: str) -> None:
        self._system, self._root = system, root.rstrip("/")

    def put(self, source: Path) -> str:
        with _store_errors(self._root, Exception):
            sha256 = _digest(source)
            if self._system.exists(self._path(sha256)):
                # An object store makes a file young again by all of its content alone; an empty one stands for it.
                self._write(self._path(sha256) + _AGAIN, lambda path: self._system.pipe_file(path, b""))
            else:
                self._write(self._path(sha256), lambda path: self._system.put_file(str(source), path))
            return sha256

    def has(self, sha256: str) -> bool:
        with _store_errors(self._root, Exception):
            return bool(self._system.exists(self._path(sha256)))

    def fetch(self, sha256: str, target: Path) -> None:
        with _store_errors(self._root, Exception):
            for is_last in (False, True):
                try:
                    self._system.get_file(self._path(sha256), str(target))
                except FileNotFoundError as error:
                    raise _absent(sha256) from error
                if _is_whole(target, sha256, is_last=is_last):
                    return

    def stored_at(self, sha256: str) -> datetime | None:
        with _store_errors(self._root, Exception):
            first = self._modified(self._path(sha256))
            again = self._modified(self._path(sha256) + _AGAIN)
            return first if first is None or again is None else max(first, again)

    def remove(self, sha256: str) -> None:
        with _store_errors(self._root, Exception):
            for name in (self._path(sha256), self._path(sha256) + _AGAIN):
                with suppress(FileNotFoundError):
                    self._system.rm_file(name)

    def check(self) -> None:
        with _store_errors(self._root, Exception):
            self._write(f"{self._root}/.writable", lambda path: self._system.pipe_file(path, b""))

    def _modified(self, path: str) -> datetime | None:
        try:
            found: datetime = self._system.modified(path)
        except FileNotFoundError:
            return None
        return found if found.tzinfo is not None else found.replace(tzinfo=UTC)

    def _write(self, path: str, write: Callable[[str], object]) -> None:
        """`write(path)`, with the folders that file systems of folders want. A bucket is never made: its name may be
        mistyped."""
        try:
            write(path)
        except FileNotFoundError:
            bucket = self._root.partition("/")[0] or "/"
            if not self._system.exists(bucket):
                raise FileNotFoundError(f"there is no {bucket}") from None
            self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
            write(path)

    def _path(self, sha256: str) -> str:
        _check_name(sha256)
        return f"{self._root}/{sha256[:2]}/{sha256}"


def _check_name(sha256: str) -> None:
    if not _SHA256.fullmatch(sha256):
        raise InputError("what is stored has a sha256 of 64 hex digits", values=repr(sha256[:80]))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_whole(path: Path, sha256: str, *, is_last: bool) -> bool:
    """Whether what was fetched to `path` is what was stored; if not, it goes. Raises DatasetError where it `is_last`.

    The first time it may be that the transfer was cut.
    """
    if (found := _digest(path)) == sha256:
        return True
    path.unlink()
    if is_last:
        raise DatasetError(
            "what is stored under a sha256 must have it",
            values=f"{sha256[:12]} has {found[:12]}, twice",
            remedy="The data store is damaged: compare that file with a copy of it, or hand the data set in again",
        )
    return False


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that there is. What cannot be looked at raises, as it is."""
    for place in (folder, *folder.parents):
        try:
            place.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        return place
    raise FileNotFoundError(str(folder))


def _absent(sha256: str) -> NotFoundError:
    return NotFoundError(
        "the content of a data set must be in the data store",
        values=f"nothing under {sha256[:12]}...",
        remedy="Let server and worker use the same LOP_DATA_STORE, or hand the data set in again",
    )


@contextmanager
def _store_errors(place: str, failures: type[Exception] = OSError) -> Iterator[None]:
    """What file systems of `fsspec` raise need be no OSError: s3fs hands on what botocore raises."""
    try:
        yield
    except LopError:
        raise
    except failures as error:
        raise DataStoreUnavailableError(
            "the data store must be readable and writable, and have room",
            values=f"{place}: {reason_of(error)}",
            remedy="Check LOP_DATA_STORE, its permissions, and the free disk space or the keys of the object store",
        ) from error
