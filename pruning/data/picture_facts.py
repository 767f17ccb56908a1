"""What a picture file is: what `lop data check` tells of it."""

import hashlib
from dataclasses import dataclass

from pruning.data.conversations import Conversation
from pruning.data.picture_files import is_turned_by_metadata


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that can be read.

    Attributes:
        size: width and height in pixels, as it lies in its file.
        mode: Pillow's name of its channels.
        sha256: of the file.
        is_turned: EXIF says that it does not lie upright.
    """

    size: tuple[int, int]
    mode: str
    sha256: str
    is_turned: bool


def read_picture(conversation: Conversation) -> Picture | None:
    """The picture of a conversation, every pixel read; None if it has none.

    Raises DatasetError if the file is missing or damaged, or RGB would not show what it holds.
    """
    from PIL import Image

    if conversation.image is None:
        return None
    conversation.open_image()
    with Image.open(conversation.image) as picture:
        size, mode = picture.size, picture.mode
    content = conversation.image.read_bytes()
    return Picture(size, mode, hashlib.sha256(content).hexdigest(), is_turned_by_metadata(content))
