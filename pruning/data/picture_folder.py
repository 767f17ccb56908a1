"""The pictures of a folder, as questions may be asked about them."""

from pathlib import Path

from pruning.data.conversations import Conversation, check_image
from pruning.errors import DatasetError

_ENDINGS = frozenset((".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))


def pictures_in(folder: Path) -> list[Path]:
    """The picture files of a folder and of those in it, by path; hidden files are none.

    Raises DatasetError if it cannot be read or has none, or if one of them is no picture or no JSON could name it.
    """
    try:
        next(folder.iterdir(), None)  # of a folder that is not there, `rglob` finds nothing
        found = sorted(path for path in folder.rglob("*") if _is_picture(path))
    except OSError as error:
        raise DatasetError("the folder of pictures must be readable", values=f"{folder}: {error.strerror}") from error
    if not found:
        raise DatasetError(
            "a folder of pictures must hold some",
            values=f"{folder}: no file in it ends in {', '.join(sorted(_ENDINGS))}",
        )
    for path in found:
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise DatasetError(
                "names of pictures must be Unicode", values=ascii(str(path)), remedy="Rename the file or its folder"
            ) from error
        check_image(Conversation(path.name, path, ()))
    return found


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in _ENDINGS and not path.name.startswith(".") and path.is_file()
