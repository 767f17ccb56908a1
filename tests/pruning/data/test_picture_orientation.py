"""Pictures as models see them: upright, and refused where RGB would not show what the file holds."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from pruning.data.conversations import Conversation, Turn, calibration_id, load_conversations
from pruning.data.picture_files import check_pixels, is_turned_by_metadata
from pruning.errors import DatasetError

ORIENTATION = 0x0112
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def save(path: Path, orientation: int | None, **options: object) -> Path:
    mark = Image.Exif()
    if orientation is not None:
        mark[ORIENTATION] = orientation
        options["exif"] = mark
    Image.fromarray(PIXELS).save(path, **options)  # type: ignore[arg-type]
    return path


def about(image: Path) -> Conversation:
    return Conversation("a", image, (Turn("what?", "red"),))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = save(tmp_path / f"a.{suffix}", orientation)
    with Image.open(path) as picture:
        expected = ImageOps.exif_transpose(picture).convert("RGB")
    found = about(path).open_image()
    assert found is not None
    assert found.size == ((24, 40) if orientation >= 5 else (40, 24))
    assert np.array_equal(np.asarray(found), np.asarray(expected))
    assert check_pixels(path) == found.size


@pytest.mark.parametrize("orientation", [0, 9, None])
def test_metadata_that_say_nothing_turn_nothing(tmp_path: Path, orientation: int | None) -> None:
    path = save(tmp_path / "a.png", orientation)
    found = about(path).open_image()
    assert found is not None
    assert np.array_equal(np.asarray(found), PIXELS)
    assert not is_turned_by_metadata(path.read_bytes())


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow's own
def test_damaged_metadata_of_a_whole_picture(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7fgarbage")
    path = tmp_path / "a.jpg"
    path.write_bytes(buffer.getvalue())
    found = about(path).open_image()
    assert found is not None
    assert found.size == (40, 24)


def id_by_bytes(conversation: Conversation) -> str:
    """As versions computed it that did not look at metadata."""
    assert conversation.image is not None
    text = json.dumps([conversation.turns[0].question, conversation.turns[0].answer]).encode()
    return hashlib.sha256(text + conversation.image.read_bytes() + b"\0").hexdigest()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_only_sets_whose_pictures_are_seen_otherwise_get_another_id(tmp_path: Path, suffix: str) -> None:
    for orientation in (None, 1):
        same = about(save(tmp_path / f"a.{suffix}", orientation))
        assert calibration_id([same]) == id_by_bytes(same)
    turned = about(save(tmp_path / f"b.{suffix}", 6))
    # Pillow has always turned TIFF.
    assert (calibration_id([turned]) == id_by_bytes(turned)) == (suffix == "tiff")


def load(tmp_path: Path, picture: Image.Image, name: str) -> Conversation:
    picture.save(tmp_path / name)
    said = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "red"}]
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"id": "seven", "image": name, "conversations": said}]))
    (found,) = load_conversations(path)
    return found


RAMP = np.linspace(0, 65535, 24 * 40).reshape(24, 40)


@pytest.mark.parametrize(
    ("picture", "name"),
    [
        (Image.fromarray(RAMP.astype(np.uint16)), "grey.png"),
        (Image.fromarray(RAMP.astype(np.uint16)), "grey.tiff"),
        (Image.fromarray((RAMP / 65535).astype(np.float32)), "floats.tiff"),
        (Image.fromarray(RAMP.astype(np.int32)), "integers.tiff"),
    ],
)
def test_more_levels_than_rgb_has_are_refused(tmp_path: Path, picture: Image.Image, name: str) -> None:
    with pytest.raises(DatasetError, match=rf"8 bits a channel.*{name}.*conversation seven.*8-bit picture"):
        load(tmp_path, picture, name)


def test_a_drawing_in_the_transparency_alone_is_refused(tmp_path: Path) -> None:
    alpha = Image.fromarray(PIXELS[:, :, 0])
    drawing = Image.new("RGBA", (40, 24), (0, 0, 0, 0))
    drawing.putalpha(alpha)
    with pytest.raises(DatasetError, match=r"without its transparency.*conversation seven.*background"):
        load(tmp_path, drawing, "a.png").open_image()
    shown = Image.fromarray(PIXELS).convert("RGBA")
    shown.putalpha(alpha)
    found = load(tmp_path, shown, "b.png").open_image()
    assert found is not None
    assert np.array_equal(np.asarray(found), PIXELS)


@pytest.mark.parametrize(("level", "is_shown"), [(1, False), (8, False), (9, True)])
def test_a_trace_of_colour_is_no_drawing(tmp_path: Path, level: int, is_shown: bool) -> None:
    drawing = Image.new("RGBA", (40, 24), (0, 0, 0, 0))
    drawing.putpixel((3, 4), (level, 0, 0, 0))
    drawing.putalpha(Image.fromarray(PIXELS[:, :, 0]))
    found = load(tmp_path, drawing, "a.png")
    if is_shown:
        assert found.open_image() is not None
    else:
        with pytest.raises(DatasetError, match=r"without its transparency.*conversation seven.*background"):
            found.open_image()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_other_modes_are_converted(tmp_path: Path, mode: str) -> None:
    name = "a.tiff" if mode == "CMYK" else "a.png"
    found = load(tmp_path, Image.fromarray(PIXELS).convert(mode), name).open_image()
    assert found is not None
    assert (found.mode, found.size) == ("RGB", (40, 24))


def test_a_flat_picture_is_a_picture(tmp_path: Path) -> None:
    assert load(tmp_path, Image.new("RGBA", (8, 8), (1, 2, 3, 255)), "a.png").open_image() is not None
