"""What a benchmark that is not finished has measured, as one file of this repository: it goes on from there on another
machine.

A long benchmark may not end before its machine is taken away. `python -m benchmarks.carried axes` packs what
benchmarks/.work/axes holds into benchmarks/carried/axes.tar.xz: finished steps, metrics of configurations, statistics,
profiles, answers. Checkpoints and trainings are made again. A run on a machine that has none of it reads the archive
first (`benchmarks.steps.alone_in`); once its results are written, the archive has served, and is deleted by hand.

What is read is trusted as little as what a killed run left behind: steps of other code are done again, kept metrics
are measured again here and there. Times within a finished part are those of the machine that measured it.
"""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer

from pruning.atomic_file import replace_file

FOLDER = Path(__file__).parent / "carried"
WORK = Path(__file__).parent / ".work"
TAKEN = "carried.sha256"
"""In a work folder: of the archive that was read into it."""

SUFFIXES = (".json", ".jsonl", ".safetensors")
MAX_FILE_BYTES = 64 * 2**20
NOT_CARRIED = "training"
"""What names of folders and files begin with that are made again from what is carried: half of a training's state
would stop the training that finds it."""


def archive_of(work: Path, folder: Path | None = None) -> Path:
    """Where the benchmark that works in `work` is packed."""
    return (folder or FOLDER) / f"{work.name}.tar.xz"


def pack(work: Path, folder: Path | None = None) -> Path:
    """Writes and returns the archive of `work`. Equal contents give equal bytes.

    Raises FileNotFoundError if there is nothing to carry.
    """
    paths = sorted(_carried(work))
    if not paths:
        raise FileNotFoundError(f"nothing was measured in {work}")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        for path in paths:
            content = path.read_bytes()
            member = tarfile.TarInfo(path.relative_to(work).as_posix())
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    packed = archive_of(work, folder)
    packed.parent.mkdir(parents=True, exist_ok=True)
    replace_file(packed, buffer.getvalue())
    return packed


def take_up(work: Path, folder: Path | None = None) -> int:
    """Reads the archive of `work` into it, if there is one that was not read before; returns the number of files.

    Files that are there stay: they are newer. Killed in the middle, the next call reads the rest.
    """
    path = archive_of(work, folder)
    if not path.is_file():
        return 0
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    taken = work / TAKEN
    if taken.is_file() and taken.read_text() == sha256:
        return 0
    written = 0
    with tarfile.open(path, mode="r:xz") as archive:
        for member in archive:
            name = PurePosixPath(member.name)
            if not member.isfile() or name.is_absolute() or ".." in name.parts:
                raise ValueError(f"an archive of measurements holds plain files below its root: {member.name}")
            content, target = archive.extractfile(member), work / name
            if content is not None and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                replace_file(target, content.read())
                written += 1
    replace_file(taken, sha256.encode())
    return written


def _carried(work: Path) -> Iterator[Path]:
    """Files of measurements below `work`: none of checkpoints, of trainings, or of what is hidden."""
    if not work.is_dir():
        return
    for path in work.iterdir():
        if path.name.startswith((".", NOT_CARRIED)):
            continue
        if path.is_dir() and not (path / "config.json").exists():
            yield from _carried(path)
        elif path.is_file() and path.suffix in SUFFIXES and path.stat().st_size <= MAX_FILE_BYTES:
            yield path


def main(name: Annotated[str, typer.Argument(help="Of a folder of benchmarks/.work.")]) -> None:
    """Pack what the benchmark has measured into benchmarks/carried."""
    path = pack(WORK / name)
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")  # noqa: T201


if __name__ == "__main__":
    typer.run(main)
