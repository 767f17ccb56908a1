"""What a picture file is: what `lop data check` tells of it."""

import hashlib
from dataclasses import dataclass

from pruning.conversations import Conversation, check_image

_ORIENTATION = 0x0112
"""The EXIF tag that says how a picture lies in its file; 1 is upright."""

_DEEP_MODES = ("I", "F")
"""How names of Pillow's modes begin that hold more than 8 bits a channel."""


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

    @property
    def is_deep(self) -> bool:
        """Whether it has more than 8 bits a channel, of which models see 8 at most."""
        return self.mode.startswith(_DEEP_MODES)


def read_picture(conversation: Conversation) -> Picture | None:
    """The picture of a conversation, every pixel read; None if it has none.

    Raises DatasetError if the file is missing or damaged.
    """
    from PIL import Image

    if conversation.image is None:
        return None
    check_image(conversation)
    conversation.open_image()
    with Image.open(conversation.image) as picture:
        try:
            orientation = picture.getexif().get(_ORIENTATION, 1)
        except (OSError, ValueError, SyntaxError, KeyError, TypeError):  # damaged EXIF is no EXIF
            orientation = 1
        size, mode = picture.size, picture.mode
    return Picture(size, mode, hashlib.sha256(conversation.image.read_bytes()).hexdigest(), orientation != 1)
