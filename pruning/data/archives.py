"""Archives that somebody sent, unpacked in bounds: nothing in them decides where a file lies or how long it is.

A zip or a tar file (plain, or by gzip, bzip2 or xz), by its content and not by its name. Every file is unpacked under a
number; its own name is only looked up. Links, devices and names that leave the folder are refused, and so is what is
more than the limits allow, before it is read in full.
"""

import bz2
import errno
import gzip
import lzma
import posixpath
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from io import RawIOBase
from pathlib import Path
from typing import IO, Any

from pruning.errors import DatasetError
from pruning.reasons import reason_of

MAX_HEADER_BYTES = 2**16
"""Of the headers that give a tar member a long name: names are paths, of 4,096 bytes at most."""

_CHUNK = 2**20
_END_OF_ZIP = b"PK\x05\x06"
_LOCATOR_OF_ZIP64 = b"PK\x06\x07"
_END_BYTES, _LOCATOR_BYTES, _COMMENT_BYTES = 22, 20, 2**16
_DIRECTORY_BYTES_A_FILE = 1024


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """How much an archive may hold.

    Attributes:
        files: members, folders included.
        file_bytes: of each file, unpacked.
        total_bytes: of all files together, unpacked.
        picture_pixels: of each picture, width times height.
    """

    files: int = 20_000
    file_bytes: int = 64 * 2**20
    total_bytes: int = 4 * 2**30
    picture_pixels: int = 50_000_000


def unpack(archive: Path, folder: Path, limits: ArchiveLimits) -> dict[str, Path]:
    """The files of `archive`, by their names with forward slashes, unpacked into `folder`.

    Raises:
        DatasetError: no archive, a damaged one, or one with a member that is refused.
        OSError: `folder` cannot be written.
    """
    target = _Target(folder, limits)
    with _reading():
        if _is_zip(archive):
            _unpack_zip(archive, target)
        else:
            _unpack_tar(archive, target)
    return target.files


class _Target:
    """The folder that is filled, and what was put there so far."""

    def __init__(self, folder: Path, limits: ArchiveLimits) -> None:
        self.files: dict[str, Path] = {}
        self._folder, self.limits = folder, limits
        self._members, self._bytes = 0, 0

    def count(self) -> None:
        """One more member."""
        self._members += 1
        if self._members > self.limits.files:
            raise too_many_files(self.limits)

    def write(self, name: str, source: IO[bytes]) -> None:
        """One more file; raises DatasetError if it is too long, or its name is not one of a file below."""
        name = _name_below(name)
        if name in self.files:
            raise DatasetError("an archive has every file once", values=f"{name[:200]!r} again")
        path = self._folder / str(len(self.files))
        written = 0
        with path.open("xb") as out:
            while chunk := source.read(_CHUNK):
                written += len(chunk)
                self._bytes += len(chunk)
                if written > self.limits.file_bytes:
                    raise DatasetError(
                        f"a file of an archive has at most {self.limits.file_bytes} bytes", values=repr(name[:200])
                    )
                if self._bytes > self.limits.total_bytes:
                    raise _too_long(self.limits)
                out.write(chunk)
        self.files[name] = path


def _name_below(name: str) -> str:
    """The name in its shortest form; raises DatasetError unless it is one of a place below the archive's folder."""
    plain = posixpath.normpath(name)
    parts = plain.split("/")
    if (
        not name
        or plain in (".", "..")
        or name.startswith(("/", "\\"))
        or "\0" in name
        or "\\" in name
        or ".." in parts
        or ":" in parts[0]
    ):
        raise DatasetError(
            "the name of a file in an archive is a path below its folder, with forward slashes",
            values=repr(name[:200]),
            remedy="Pack the folder itself, from within it",
        )
    return plain


def too_many_files(limits: ArchiveLimits) -> DatasetError:
    """The error of an archive with more members than it may have."""
    return DatasetError(f"an archive has at most {limits.files} files", remedy="Leave out what no conversation names")


def _too_long(limits: ArchiveLimits) -> DatasetError:
    return DatasetError(f"the files of an archive have at most {limits.total_bytes} bytes together, unpacked")


def _refused(name: str, what: str) -> DatasetError:
    return DatasetError("an archive holds files and folders, and nothing else", values=f"{name[:200]!r} is {what}")


@contextmanager
def _reading() -> Iterator[None]:
    """Whatever is raised on a damaged archive becomes a DatasetError."""
    try:
        yield
    except DatasetError:
        raise
    except OSError as error:
        # gzip and bz2 tell of damage by an OSError without a number; one of the file system has one. It is EINVAL where
        # a zip file's directory says that something lies before the archive's first byte.
        if error.errno not in (None, errno.EINVAL):
            raise
        raise _damaged(error) from error
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        ValueError,  # of names and numbers that make no sense; UnicodeError is one
        RuntimeError,  # encrypted members, endless chains of headers (RecursionError), unknown compression
        struct.error,
        OverflowError,
        IndexError,
        KeyError,
    ) as error:
        raise _damaged(error) from error


def _damaged(error: Exception) -> DatasetError:
    return DatasetError(
        "an archive must be a whole zip or tar file, without a password",
        values=reason_of(error)[:200],
        remedy="Pack it anew, such as with `zip -r data.zip calibration.json images`",
    )


# -- zip ---------------------------------------------------------------------------------------------------------
def _is_zip(archive: Path) -> bool:
    with archive.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", _END_OF_ZIP)


def _unpack_zip(archive: Path, target: _Target) -> None:
    _check_zip_directory(archive, target.limits)
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            target.count()
            mode = info.external_attr >> 16
            if info.is_dir():
                _name_below(info.filename.rstrip("/") or info.filename)
                continue
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                raise _refused(info.filename, "a link" if stat.S_ISLNK(mode) else "no file")
            # What zipfile reads is never more than the size that the directory states.
            if info.file_size > target.limits.file_bytes:
                rule = f"a file of an archive has at most {target.limits.file_bytes} bytes"
                raise DatasetError(rule, values=f"{info.filename[:200]!r} has {info.file_size}")
            with opened.open(info) as source:
                target.write(info.filename, source)


def _check_zip_directory(archive: Path, limits: ArchiveLimits) -> None:
    """Refuse a directory that is too long before `zipfile` makes objects of all of it (PKWARE APPNOTE 4.3.16)."""
    size = archive.stat().st_size
    with archive.open("rb") as file:
        file.seek(max(0, size - _END_BYTES - _COMMENT_BYTES - _LOCATOR_BYTES))
        tail = file.read()
    place = tail.rfind(_END_OF_ZIP)
    if place < 0 or len(tail) < place + _END_BYTES:
        raise zipfile.BadZipFile("no end of the central directory")
    files, length = struct.unpack("<HL", tail[place + 10 : place + 16])
    is_zip64 = tail[max(0, place - _LOCATOR_BYTES) : place].startswith(_LOCATOR_OF_ZIP64)
    if is_zip64 or files > limits.files or length > limits.files * _DIRECTORY_BYTES_A_FILE:
        raise too_many_files(limits)


# -- tar ---------------------------------------------------------------------------------------------------------
class _Bounded(RawIOBase):
    """What a decompressor gives, up to a number of bytes: headers count, too, and so does what is skipped."""

    def __init__(self, source: IO[bytes], most: int, limits: ArchiveLimits) -> None:
        self._source, self._left, self._limits = source, most, limits

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        chunk = self._source.read(min(size, _CHUNK) if size >= 0 else _CHUNK)
        self._left -= len(chunk)
        if self._left < 0:
            raise _too_long(self._limits)
        return chunk


class _BoundedMember(tarfile.TarInfo):
    """A member whose extended headers are short: `tarfile` reads each of them into memory as a whole."""

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        extended = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, *_LONG_NAMES)
        if self.type in extended and self.size > MAX_HEADER_BYTES:
            raise DatasetError(
                f"the headers of an archive have at most {MAX_HEADER_BYTES} bytes each", values=str(self.size)
            )
        return super()._proc_member(tar)  # type: ignore[misc]


_LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


def _unpack_tar(archive: Path, target: _Target) -> None:
    limits = target.limits
    # A header of 512 bytes and padding for each member, and perhaps a long name.
    most = limits.total_bytes + limits.files * (MAX_HEADER_BYTES // 16)
    with _decompressed(archive) as source:
        bounded: Any = _Bounded(source, most, limits)
        with tarfile.open(fileobj=bounded, mode="r|", tarinfo=_BoundedMember) as opened:
            for member in opened:
                target.count()
                if member.isdir():
                    if member.name not in (".", ""):
                        _name_below(member.name)
                    continue
                if not member.isreg() or member.issparse():
                    what = "a link" if member.issym() or member.islnk() else "no file"
                    raise _refused(member.name, "sparse" if member.issparse() else what)
                if member.size > limits.file_bytes:
                    rule = f"a file of an archive has at most {limits.file_bytes} bytes"
                    raise DatasetError(rule, values=f"{member.name[:200]!r} has {member.size}")
                content = opened.extractfile(member)
                assert content is not None
                with content:
                    target.write(member.name, content)


@contextmanager
def _decompressed(archive: Path) -> Iterator[IO[bytes]]:
    with archive.open("rb") as file:
        start = file.read(6)
        file.seek(0)
        decompressor: Any = nullcontext
        if start.startswith(b"\x1f\x8b"):
            decompressor = partial(gzip.GzipFile, None, "rb", 9)
        elif start.startswith(b"BZh"):
            decompressor = bz2.BZ2File
        elif start == b"\xfd7zXZ\x00":
            decompressor = lzma.LZMAFile
        with decompressor(file) as opened:
            yield opened
