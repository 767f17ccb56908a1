"""Picture files as models are to see them: upright, in RGB, and with the content that the file shows."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pruning.data.picture_errors import unreadable_picture
from pruning.errors import DatasetError

if TYPE_CHECKING:
    from PIL.Image import Image

_ORIENTATION = 0x0112
_UPRIGHT = 1
_SPEAKS_OF_ORIENTATION = (b"Exif", b"eXIf", b"exif", b"EXIF", b"rientation", b"ftypavif")
"""One of these is in every file whose metadata may turn it: EXIF blocks of JPEG, PNG and WebP, XMP, and AVIF."""
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""What turns a picture upright, by its orientation."""
_ON_THEIR_SIDE = (5, 6, 7, 8)
_BARELY_SEEN = 8
"""Of 255 levels: a picture that differs by no more shows nothing."""
_MANY_LEVELS = ("I", "F")
"""Modes that begin so: 16 and 32 bits a pixel, and floating-point numbers."""


def open_upright(path: Path) -> "Image":
    """The picture in RGB, turned as its EXIF orientation says: what transformers' own `load_image` hands to models.

    Raises DatasetError if the file is damaged, or if RGB would not show what it holds.
    """
    with _reading(path) as picture:
        return _in_rgb(picture, path)


def check_header(path: Path) -> None:
    """Check, without decoding its pixels, that the file is a picture that can be shown in RGB; else DatasetError."""
    with _reading(path) as picture:
        _check_levels(picture, path)
        picture.verify()


def check_pixels(path: Path) -> tuple[int, int]:
    """Width and height of the picture as it is shown, after all of its pixels were decoded, JPEGs at low resolution.

    Raises DatasetError as `open_upright`.
    """
    with _reading(path) as picture:
        width, height = picture.size
        picture.draft("RGB", (max(1, width // 8), max(1, height // 8)))  # an eighth of the work for a JPEG
        _in_rgb(picture, path)
        return (height, width) if _orientation(picture) in _ON_THEIR_SIDE else (width, height)


def is_turned_by_metadata(content: bytes) -> bool:
    """Whether the picture in `content` is shown otherwise than its pixels lie in the file.

    TIFF counts as never turned: Pillow itself turns those.
    """
    import io

    from PIL import Image

    if not any(word in content for word in _SPEAKS_OF_ORIENTATION):
        return False  # the usual case, told without decoding a PNG
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return _orientation(picture) != _UPRIGHT
    except Exception:  # noqa: BLE001 (no picture: who opens it will say so)
        return False


def _orientation(picture: "Image") -> int:
    """1 to 8, as EXIF has it: 1 is upright."""
    if picture.format == "TIFF":
        return _UPRIGHT
    try:
        found = picture.getexif().get(_ORIENTATION, _UPRIGHT)
    except Exception:  # noqa: BLE001 (damaged metadata of a picture that is whole)
        return _UPRIGHT
    return found if found in range(1, 9) else _UPRIGHT


def _in_rgb(picture: "Image", path: Path) -> "Image":
    from PIL.Image import Transpose

    _check_levels(picture, path)
    has_transparency = "A" in picture.mode or "transparency" in picture.info
    shown = picture.convert("RGB")
    turn = _TURNS.get(_orientation(picture))
    if turn is not None:
        shown = shown.transpose(Transpose[turn])
    if has_transparency and _is_flat(shown) and not _is_flat(picture.convert("RGBA").getchannel("A")):
        raise DatasetError(
            "a picture must show something without its transparency, which models do not see",
            values=f"{path}: its pixels have one colour, or nearly so",
            remedy="Put it on a background, and save it without transparency",
        )
    return shown


def _check_levels(picture: "Image", path: Path) -> None:
    if picture.mode.startswith(_MANY_LEVELS):
        raise DatasetError(
            "a picture must have 8 bits a channel",
            values=f"{path}: Pillow's mode {picture.mode!r}, which becomes white or black in RGB",
            remedy="Save it as an 8-bit picture, scaled to 0..255 as the model is to see it",
        )


def _is_flat(picture: "Image") -> bool:
    extrema = picture.getextrema()
    bands = extrema if isinstance(extrema[0], tuple) else (extrema,)
    return all(high - low <= _BARELY_SEEN for low, high in bands)


@contextmanager
def _reading(path: Path) -> Iterator["Image"]:
    """The file, opened; whatever Pillow raises on damaged ones becomes a DatasetError."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            yield picture
    except DatasetError:
        raise
    except FileNotFoundError as error:
        raise DatasetError(
            "every image that the file names must exist",
            values=str(path),
            remedy="Image paths are relative to the JSON file",
        ) from error
    except Exception as error:
        raise unreadable_picture(path, error) from error
