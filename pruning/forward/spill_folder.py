"""Where large temporary files go: to a disk, also where the folder for temporary files is in memory."""

import os
import re
import tempfile
from pathlib import Path

DISK_FOLDER = Path("/var/tmp")  # noqa: S108 - the file in it has no name
"""For temporary files that may be large and last longer (Filesystem Hierarchy Standard 3.0, section 5.15)."""

_MOUNTS = Path("/proc/self/mounts")
_IN_MEMORY = ("tmpfs", "ramfs")


def spill_folder() -> Path:
    """The folder that TMPDIR, TEMP or TMP names; else the usual one (/tmp), or /var/tmp if that one is in memory.

    Fedora, Arch and Debian 13 keep /tmp in memory (tmpfs), where a file takes what it was to save.
    """
    usual = Path(tempfile.gettempdir())
    if any(os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP")) or not is_in_memory(usual):
        return usual
    on_disk = DISK_FOLDER.is_dir() and os.access(DISK_FOLDER, os.W_OK | os.X_OK) and not is_in_memory(DISK_FOLDER)
    return DISK_FOLDER if on_disk else usual


def is_in_memory(folder: Path) -> bool:
    """Whether `folder` is on a file system that is no disk; False where the system does not say (all but Linux)."""
    try:
        mounts = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return False
    kind, deepest = "", -1
    for mount in mounts:
        _, point, found, *_ = mount.split(" ")
        # Spaces and the like are written in octal, as \040 (proc(5), fstab(5)).
        place = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point))
        depth = len(place.parts)
        # Of two at one place, the later one covers the earlier.
        if depth >= deepest and folder.resolve().is_relative_to(place):
            kind, deepest = found, depth
    return kind in _IN_MEMORY
