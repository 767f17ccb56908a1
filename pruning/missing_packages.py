"""Packages that transformers asks for on its way, and that are not installed: named, with what installs them."""

import re
from importlib.util import find_spec

from pruning.errors import MissingExtraError

_ASKS = (
    re.compile(r"pip install (?:-U |--upgrade )*['\"`]?([A-Za-z][\w.\-\[\],]*)"),
    re.compile(r"Missing optional dependencies: ([A-Za-z][\w.\-]*)"),
    re.compile(r"requires the ([\w.\-]+) library but it was not found", re.IGNORECASE),
    re.compile(r"Package [`'\"]?([\w.\-]+)[`'\"]? is required"),
)
_INSTALLED_AS = {
    "PIL": "pillow",
    "google": "protobuf",
    "cv2": "opencv-python-headless",
    "sentencepiece": "sentencepiece protobuf",
}


def is_installed(name: str) -> bool:
    """Whether the package `name` can be imported."""
    return find_spec(name) is not None


def missing_package(error: BaseException, *, of: str) -> MissingExtraError | None:
    """What to raise instead of `error` if it says that a package is not installed; None if it says nothing like it.

    `of` is what cannot be had without it, for instance the folder of a processor.
    """
    name = _named(error)
    if name is None:
        return None
    package = _INSTALLED_AS.get(name, name)
    return MissingExtraError(
        f"`{name}` must be installed for this checkpoint",
        values=of,
        remedy=f"Install it: pip install {package}",
    )


def _named(error: BaseException) -> str | None:
    """The package that `error`, or what it was raised from, asks for."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ModuleNotFoundError) and seen.name:
            return seen.name.split(".")[0]
        for pattern in _ASKS:
            if found := pattern.search(str(seen)):
                return found[1].rstrip(".").lower()
        seen = seen.__cause__ or seen.__context__
    return "a package that transformers does not name" if isinstance(error, ImportError) else None
