"""Conversations and pictures as one file of one form, from a user's archive of any."""

import io
import json
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pruning.data.archives import ArchiveLimits
from pruning.data.conversations import calibration_id, load_conversations
from pruning.data.packed_data import pack, pack_archive, unpack_packed
from pruning.errors import DatasetError
from tests.pruning.data.test_archives import tarred, zipped
from tests.tiny_models import write_conversations

LIMITS = ArchiveLimits(files=100, picture_pixels=100 * 100)


def picture(size: tuple[int, int] = (8, 6), colour: str = "red", form: str = "PNG") -> bytes:
    out = io.BytesIO()
    image = Image.new("RGB", size, colour)
    image.putpixel((0, 0), (0, 255, 0))
    image.save(out, form)
    return out.getvalue()


def item(name: str, image: str | None = None, **more: Any) -> dict[str, Any]:
    question = "What?" if image is None else "<image>\nWhat?"
    messages = [{"from": "human", "value": question}, {"from": "gpt", "value": name}]
    return {"id": name, "conversations": messages, **({} if image is None else {"image": image}), **more}


def document(*items: Any) -> bytes:
    return json.dumps(items).encode()


def packed(archive: bytes, tmp_path: Path) -> Path:
    source = tmp_path / "archive"
    source.write_bytes(archive)
    out = tmp_path / "packed.tar"
    out.unlink(missing_ok=True)
    pack_archive(source, out, LIMITS)
    return out


def test_what_was_packed_is_what_was_measured(tmp_path: Path) -> None:
    path = write_conversations(tmp_path / "data", 5)
    conversations = load_conversations(path)
    made = pack(conversations, tmp_path / "one.tar")
    assert (made.num_conversations, made.num_answers) == (5, 10)
    assert made.size_bytes == (tmp_path / "one.tar").stat().st_size
    again = load_conversations(unpack_packed(tmp_path / "one.tar", tmp_path / "unpacked"))
    assert calibration_id(again) == calibration_id(conversations)
    assert [(c.id, c.turns) for c in again] == [(c.id, c.turns) for c in conversations]


def test_equal_content_is_equal_bytes_whatever_it_came_in(tmp_path: Path) -> None:
    one, two = picture(), picture(colour="blue")
    flat = zipped(("c.json", document(item("a", "1.png"), item("b", "2.png"))), ("1.png", one), ("2.png", two))
    deep = tarred(
        ("x/y/q.json", json.dumps([item("a", "../i/p", extra=1), item("b", "./z.png")], indent=3).encode()),
        ("x/i/p", one),
        ("x/y/z.png", two),
        ("x/unused.png", two),
        ("x/.hidden.json", b"{}"),
        ("__MACOSX/c.json", b"{}"),
    )
    first = packed(flat, tmp_path).read_bytes()
    assert packed(deep, tmp_path).read_bytes() == first
    assert packed(zipped(("c.json", document(item("a", "1.png"))), ("1.png", one)), tmp_path).read_bytes() != first


@pytest.mark.parametrize(
    ("entries", "rule"),
    [
        ([("a.txt", b"")], "one conversation file"),
        ([("a.json", b"[]"), ("b.json", b"[]")], "one conversation file"),
        ([("a.json", b"[]")], "non-empty JSON list"),
        ([("a.json", b"[" * 10_000)], "must be JSON"),
        ([("a.json", document(item("a", "1.png")))], "must be in the archive"),
        ([("a.json", document(item("a", "../1.png"))), ("1.png", b"")], "must be in the archive"),
        ([("a.json", document(item("a", "/etc/passwd")))], "must be in the archive"),
        ([("a.json", document(item("a", "a.json")))], "every image must be readable"),
        ([("a.json", document(item("a", "1.png"))), ("1.png", picture()[:60])], "every image must be readable"),
        ([("a.json", document(item("a", "1.eps"))), ("1.eps", b"%!PS-Adobe-3.0 EPSF-3.0")], "every image must be"),
        ([("a.json", document(item("a", "1.png"))), ("1.png", picture((101, 100)))], "at most 10000 pixels"),
    ],
)
def test_what_is_refused_names_files_as_the_user_does(tmp_path: Path, entries: Any, rule: str) -> None:
    with pytest.raises(DatasetError, match=rule) as caught:
        packed(zipped(*entries), tmp_path)
    assert str(tmp_path) not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"archive"}


def test_a_picture_of_40_gigapixels_is_told_by_its_header(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 200_000, 200_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(2**20)))
    with pytest.raises(DatasetError, match=r"at most 10000 pixels.*1\.png"):
        packed(zipped(("a.json", document(item("a", "1.png"))), ("1.png", bomb + chunk(b"IEND", b""))), tmp_path)


def test_pictures_of_the_usual_formats(tmp_path: Path) -> None:
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        assert packed(zipped(("a.json", document(item("a", "1"))), ("1", picture(form=form))), tmp_path).exists()


def test_other_tar_files_are_not_packed_data(tmp_path: Path) -> None:
    for number, content in enumerate(
        (tarred(("../x", b"x")), tarred(("conversations.json", b""), kind=tarfile.SYMTYPE))
    ):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(content)
        with pytest.raises(DatasetError, match="packed data holds"):
            unpack_packed(path, tmp_path / f"folder {number}")
    (tmp_path / "none").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match="packed data must be"):
        unpack_packed(tmp_path / "none", tmp_path / "folder")
    assert not (tmp_path / "x").exists()
    assert zipfile.is_zipfile(tmp_path / "none") is False
