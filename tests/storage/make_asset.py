"""Makes `assets/revision_REVISION.sqlite3`: a small database as a release at that revision leaves it behind.

Run once for every released revision, before the next one is written: `python -m tests.storage.make_asset`. The files
are kept for good: `test_migration.py` upgrades each of them and reads the rows back.
"""

import sqlite3
import tempfile
from pathlib import Path

from storage.migration import REVISIONS
from storage.records import PlanRecord
from storage.sql_repository import open_repository
from tests.storage.examples import (
    SPACE,
    dataset,
    device,
    job,
    key,
    plan,
    predictor,
    sample,
    samples_of_other_things,
    search_document,
    statistics,
    store_basics,
)

ASSETS = Path(__file__).parent / "assets"


def make_asset(path: Path) -> None:
    """Store one of everything through the public repository, then shrink the file."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work.db"
        with open_repository(f"sqlite:///{work}", create=True) as repository:
            store_basics(repository)
            repository.add_samples([sample(number) for number in range(1, 6)])
            repository.add_samples(samples_of_other_things())
            repository.add_statistics(statistics())
            repository.add_predictor(predictor())
            repository.add_device(device())
            repository.add_plan(PlanRecord("request", plan()))
            repository.add_job(job(key="once"))
            repository.add_dataset(dataset())
            repository.add_key(key())
            repository.record_search("m", search_document(), {"best_kl": 0.02}, space=SPACE, validation={"id": "c"})
        connection = sqlite3.connect(work)
        # Pages of 1 KiB instead of 4 for a small file; their size can only be changed outside of WAL.
        for pragma in ("journal_mode = DELETE", "page_size = 1024"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("VACUUM")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.close()
        path.write_bytes(work.read_bytes())


if __name__ == "__main__":
    make_asset(ASSETS / f"revision_{REVISIONS[-1]}.sqlite3")
