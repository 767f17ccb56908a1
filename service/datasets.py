"""Data sets: archives that are handed in, packed and stored by their content, and unpacked again for a job."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from pruning.data.archives import ArchiveLimits
from pruning.data.conversations import Conversation, load_conversations
from pruning.data.packed_data import CONVERSATIONS, PackedData, pack, pack_archive, unpack_packed
from storage.contract import Datasets
from storage.data_store import DataStore
from storage.records import DatasetRecord

LIMITS = ArchiveLimits()

MOST_UPLOADS = 4
"""That one server process takes in at once. With `LOP_MAX_DATASET_BYTES` and `LIMITS` this bounds the disk that its
temporary folder needs; a machine is seldom sent data sets by more people at once."""


class DatasetShelf:
    """The data sets of a database and their content in a data store. Thread-safe."""

    def __init__(self, repository: Datasets, store: DataStore) -> None:
        self._repository, self._store = repository, store

    def check(self) -> None:
        """Raises StorageUnavailableError if the data store cannot be used."""
        self._store.check()

    def add_archive(self, archive: Path, *, name: str, added_by: str, limits: ArchiveLimits = LIMITS) -> DatasetRecord:
        """Check and store what a user's archive holds; beside it, its files are unpacked for a while.

        Raises DatasetError for an archive that breaks a rule, StorageError if it cannot be stored.
        """
        with TemporaryDirectory(dir=archive.parent, prefix="packed-") as folder:
            out = Path(folder) / "packed.tar"
            return self._add(pack_archive(archive, out, limits), out, name, added_by)

    def add_conversations(self, conversations: Sequence[Conversation], *, name: str, added_by: str) -> DatasetRecord:
        """Store conversations that lie on this machine. Raises as `add_archive`."""
        with TemporaryDirectory(prefix="lop-") as folder:
            out = Path(folder) / "packed.tar"
            return self._add(pack(conversations, out), out, name, added_by)

    def _add(self, packed: PackedData, path: Path, name: str, added_by: str) -> DatasetRecord:
        self._store.put(path)  # first: a record without its content helps nobody
        record = self._repository.add_dataset(
            DatasetRecord(
                id=packed.sha256,
                name=name,
                num_conversations=packed.num_conversations,
                num_answers=packed.num_answers,
                num_pictures=packed.num_pictures,
                size_bytes=packed.size_bytes,
                added_by=added_by,
                created_at=datetime.now(UTC),
            )
        )
        if not self._store.has(record.id):  # it was there, and has gone since with an old record (`old_datasets`)
            self._store.put(path)
        return record

    @contextmanager
    def unpacked(
        self, dataset_id: str, limit: int | None = None, *, cache: Path | None = None
    ) -> Iterator[tuple[str, list[Conversation]]]:
        """The name of a data set and its first `limit` conversations, whose pictures can be read within the block.

        With a `cache`, an existing folder, they are unpacked once and stay there. Raises NotFoundError, StorageError.
        """
        record = self._repository.get_dataset(dataset_id)
        with TemporaryDirectory(dir=cache, prefix="lop-data-") as draft:
            kept = None if cache is None else cache / dataset_id
            if kept is None or not kept.is_dir():
                packed, folder = Path(draft) / "packed.tar", Path(draft) / "content"
                self._store.fetch(dataset_id, packed)
                unpack_packed(packed, folder)
                packed.unlink()
                if kept is not None and not kept.is_dir():
                    try:
                        folder.rename(kept)
                    except OSError:
                        if not kept.is_dir():  # another worker was first
                            raise
                    folder = kept
            else:
                folder = kept
            yield record.name, load_conversations(folder / CONVERSATIONS, limit)
