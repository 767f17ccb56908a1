"""Pictures that somebody sent: told by their header whether they are too large, before a pixel is decoded."""

from pathlib import Path

from pruning.data.picture_errors import unreadable_picture
from pruning.data.picture_files import check_pixels
from pruning.errors import DatasetError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""What Pillow decodes by itself. Of others, some start another program (EPS) or read other files."""


def check_in_bounds(path: Path, max_pixels: int, name: str) -> None:
    """Raises DatasetError unless the file is a picture of one of `FORMATS`, of at most `max_pixels`, and whole.

    `name` is what the error calls it.
    """
    import warnings

    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            with Image.open(path, formats=FORMATS) as picture:
                width, height = picture.size
    except Image.DecompressionBombError as error:
        raise _too_large(name, max_pixels, str(error)) from error
    except Exception as error:
        raise _renamed(unreadable_picture(path, error), path, name) from error
    if width * height > max_pixels:
        raise _too_large(name, max_pixels, f"{width} x {height}")
    try:
        check_pixels(path)
    except DatasetError as error:
        raise _renamed(error, path, name) from error


def _renamed(error: DatasetError, path: Path, name: str) -> DatasetError:
    return DatasetError(error.rule, values=error.values.replace(str(path), name[:200]), remedy=error.remedy)


def _too_large(name: str, max_pixels: int, found: str) -> DatasetError:
    return DatasetError(
        f"a picture has at most {max_pixels} pixels", values=f"{name[:200]}: {found}", remedy="Scale it down"
    )
