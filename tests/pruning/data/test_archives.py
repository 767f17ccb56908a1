"""Archives that somebody sent: what is refused, and that nothing is written for it beyond the limits."""

import bz2
import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pruning.data.archives import ArchiveLimits, unpack
from pruning.errors import DatasetError

SMALL = ArchiveLimits(files=5, file_bytes=1000, total_bytes=2500)
FILES = {"data/calibration.json": b"[]", "data/images/1.png": b"one", "data/images/2.png": b"two"}

Entry = tuple[str, bytes]


def zipped(*entries: Entry, mode: int = stat.S_IFREG | 0o644, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = mode << 16, method
            archive.writestr(info, content)
    return out.getvalue()


def tarred(*entries: Entry, kind: bytes = tarfile.REGTYPE, link: str = "", form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, content in entries:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, link, len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def unpacked(content: bytes, tmp_path: Path, limits: ArchiveLimits = SMALL) -> dict[str, bytes]:
    archive, folder = tmp_path / "archive", tmp_path / "folder"
    archive.write_bytes(content)
    folder.mkdir(exist_ok=True)
    return {name: path.read_bytes() for name, path in unpack(archive, folder, limits).items()}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_tar_files_by_their_content(tmp_path: Path, form: int, compress: Callable[[bytes], bytes]) -> None:
    assert unpacked(compress(tarred(*FILES.items(), form=form)), tmp_path) == FILES


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_files(tmp_path: Path, method: int) -> None:
    assert unpacked(zipped(*FILES.items(), method=method), tmp_path) == FILES
    assert {path.name for path in (tmp_path / "folder").iterdir()} == {"0", "1", "2"}


def test_folders_and_dots_are_as_they_are_packed(tmp_path: Path) -> None:
    content = zipped(("data/", b""), ("./data/a.json", b"x"))
    assert unpacked(content, tmp_path) == {"data/a.json": b"x"}
    assert unpacked(tarred(("./", b""), kind=tarfile.DIRTYPE), tmp_path) == {}


@pytest.mark.parametrize("make", [zipped, tarred])
@pytest.mark.parametrize(
    "name", ["../a", "a/../../b", "/etc/passwd", "..", "a/b/../../../c", "C:/a", "..\\a", "\\a", "a\\..\\b", "."]
)
def test_no_name_leaves_the_folder(tmp_path: Path, make: Callable[..., bytes], name: str) -> None:
    with pytest.raises(DatasetError, match="a path below its folder"):
        unpacked(make(("ok", b"x"), (name, b"evil")), tmp_path)
    assert {path.name for path in tmp_path.rglob("*")} == {"archive", "folder", "0"}


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.CHRTYPE, "no file"),
        (tarfile.FIFOTYPE, "no file"),
    ],
)
def test_a_tar_file_holds_no_links_and_devices(tmp_path: Path, kind: bytes, what: str) -> None:
    with pytest.raises(DatasetError, match=f"'a' is {what}"):
        unpacked(tarred(("a", b""), kind=kind, link="/etc/passwd"), tmp_path)


@pytest.mark.parametrize(("mode", "what"), [(stat.S_IFLNK, "a link"), (stat.S_IFIFO, "no file")])
def test_a_zip_file_holds_no_links_and_devices(tmp_path: Path, mode: int, what: str) -> None:
    with pytest.raises(DatasetError, match=f"'a' is {what}"):
        unpacked(zipped(("a", b"/etc/passwd"), mode=mode), tmp_path)


@pytest.mark.parametrize("make", [zipped, tarred])
def test_limits_are_exact(tmp_path: Path, make: Callable[..., bytes]) -> None:
    full = [("a", b"x" * 1000), ("b", b"x" * 1000), ("c", b"x" * 500), ("d", b""), ("e", b"")]
    assert len(unpacked(make(*full), tmp_path)) == 5
    for number, (entries, rule) in enumerate(
        [
            ([*full, ("f", b"")], "at most 5 files"),
            ([("a", b"x" * 1001)], "a file of an archive has at most 1000 bytes"),
            ([*full[:2], ("c", b"x" * 501)], "2500 bytes together"),
            ([("a", b"1"), ("./a", b"2")], "every file once"),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(DatasetError, match=rule):
            unpacked(make(*entries), folder)


def test_a_bomb_is_stopped_where_the_limit_is(tmp_path: Path) -> None:
    limits = ArchiveLimits(files=10, file_bytes=2**20, total_bytes=2**20)
    for number, bomb in enumerate((zipped(("a", bytes(2**24))), gzip.compress(tarred(("a", bytes(2**24)))))):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(DatasetError, match="bytes"):
            unpacked(bomb, folder, limits)
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.name != "archive") <= 2**21


def test_a_zip_directory_that_lies_about_sizes_unpacks_no_more(tmp_path: Path) -> None:
    content = bytearray(zipped(("a", b"x" * 5000), method=zipfile.ZIP_DEFLATED))
    place = content.rfind(b"PK\x01\x02")
    content[place + 24 : place + 28] = struct.pack("<L", 10)  # of 5,000 bytes
    with pytest.raises(DatasetError):
        unpacked(bytes(content), tmp_path)
    assert sum(path.stat().st_size for path in (tmp_path / "folder").iterdir()) <= 1000


def test_a_zip_directory_of_many_files_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = zipped(*((str(number), b"") for number in range(6)))
    long = bytearray(zipped(*((f"{number:0500}", b"") for number in range(30))))
    place = long.rfind(b"PK\x05\x06")
    long[place + 8 : place + 12] = struct.pack("<HH", 1, 1)  # a count that lies
    monkeypatch.setattr("zipfile.ZipFile", lambda *_: pytest.fail("read"))
    for content in (many, bytes(long)):
        with pytest.raises(DatasetError, match="at most 5 files"):
            unpacked(content, tmp_path)


def test_long_headers_are_not_read(tmp_path: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 2**31
    with pytest.raises(DatasetError, match="headers of an archive have at most"):
        unpacked(header.tobuf() + bytes(2048), tmp_path)
    endless = tarfile.TarInfo("x")
    endless.type, endless.size = tarfile.XHDTYPE, 0
    with pytest.raises(DatasetError, match="whole zip or tar file"):
        unpacked(endless.tobuf(tarfile.USTAR_FORMAT) * 3000, tmp_path, ArchiveLimits())


def test_a_sparse_file_is_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("a")
    member.type, member.size = tarfile.GNUTYPE_SPARSE, 0
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    block[483:495] = b"77777777777\0"  # its real size: 8 GiB
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    with pytest.raises(DatasetError, match="sparse"):
        unpacked(bytes(block) + bytes(1024), tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\x1f\x8b", b"BZh9", b"\xfd7zXZ\x00", b"PK\x03\x04", b"x" * 5000])
def test_what_is_no_archive(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DatasetError, match="whole zip or tar file"):
        unpacked(content, tmp_path)


def test_a_zip_directory_before_the_first_byte(tmp_path: Path) -> None:
    content = bytearray(zipped(("a", b"x")))
    end = content.rfind(b"PK\x05\x06")
    content[end + 12 : end + 16] = (end + 100).to_bytes(4, "little")  # the length of the directory
    with pytest.raises(DatasetError, match="whole zip or tar file"):
        unpacked(bytes(content), tmp_path)


def test_a_zip_member_before_the_first_byte(tmp_path: Path) -> None:
    """A negative place, which only the file system refuses, by EINVAL."""
    content = bytearray(zipped(("a", b"x")))
    end, entry = content.rfind(b"PK\x05\x06"), content.rfind(b"PK\x01\x02")
    content[end + 16 : end + 20] = (entry + 5).to_bytes(4, "little")  # all is five bytes further down than it says
    with pytest.raises(DatasetError, match="whole zip or tar file"):
        unpacked(bytes(content), tmp_path)


def test_a_password(tmp_path: Path) -> None:
    content = bytearray(zipped(("a", b"x")))
    content[6] |= 1
    content[content.rfind(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(DatasetError, match="without a password"):
        unpacked(bytes(content), tmp_path)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(number=st.integers(0, 3), data=st.data())
def test_damage_anywhere_is_told_in_one_way(
    tmp_path_factory: pytest.TempPathFactory, number: int, data: st.DataObject
) -> None:
    whole = tarred(*FILES.items())
    content = bytearray([zipped(*FILES.items()), whole, gzip.compress(whole), lzma.compress(whole)][number])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(content)))
    found: dict[str, bytes] = {}
    with suppress(DatasetError):
        found = unpacked(bytes(content[:end]), tmp_path_factory.mktemp("damaged"))
    assert sum(map(len, found.values())) <= SMALL.total_bytes
