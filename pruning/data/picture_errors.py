"""Why a picture cannot be used, and what to do about that."""

from pathlib import Path

from pruning.checkpoints.lfs_pointers import REMEDY, is_pointer
from pruning.errors import DatasetError
from pruning.reasons import reason_of


def unreadable_picture(path: Path, error: Exception) -> DatasetError:
    """The error for the picture `path` of which Pillow raised `error`."""
    from PIL import Image, UnidentifiedImageError

    where = str(path)
    if isinstance(error, Image.DecompressionBombError):
        # Pillow warns from MAX_IMAGE_PIXELS on, and refuses twice as many.
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        return DatasetError(
            f"a picture may have {most:,} pixels at most",
            values=f"{where}: {reason_of(error)}",
            remedy="Make it smaller: models see a few million pixels at most",
        )
    rule, values = "every image must be readable", f"{where}: {reason_of(error)}"
    if is_pointer(path):
        return DatasetError(rule, values=f"{where}: git-lfs's pointer to a picture", remedy=REMEDY)
    try:
        size = path.stat().st_size
    except (OSError, ValueError):
        return DatasetError(rule, values=values)
    if size == 0:
        return DatasetError(rule, values=f"{where}: an empty file", remedy="Copy or download it again")
    if isinstance(error, UnidentifiedImageError):
        values = f"{where}: {size:,} bytes in no picture format that Pillow knows"
    return DatasetError(rule, values=values, remedy="Convert it to PNG or JPEG, or copy or download it again")
