"""What one application holds open while it runs: its database, its predictors, its planner."""

import asyncio
from collections.abc import Callable
from threading import Lock

from service.datasets import MOST_UPLOADS, DatasetShelf
from service.event_streams import EventStreams
from service.metrics import ServiceMetrics
from service.page.quality_curve import CurveDrawer
from service.places import Places
from service.planner import Planner
from service.predictor_cache import PredictorCache
from service.readiness import RememberedCheck
from service.settings import Settings
from service.tracing import NOTHING_TRACED, Tracing
from storage.contract import Repository
from storage.data_store import DataStore, open_store
from storage.sql_repository import SqlRepository, open_repository


class Resources:
    """Opened on first use, so that building an application costs nothing and needs no database."""

    def __init__(
        self, settings: Settings, repository: Repository | None = None, tracing: Tracing = NOTHING_TRACED
    ) -> None:
        self._settings = settings
        self.tracing = tracing
        self._repository = repository
        self._opened: SqlRepository | None = None
        self._planner: Planner | None = None
        self._drawer: CurveDrawer | None = None
        self._store: DataStore | None = None
        self.unpacking = asyncio.Semaphore(2)
        """Archives that are unpacked at once: each takes a core, and disk for what it holds."""
        self.uploads = Places(
            MOST_UPLOADS,
            rule="a server takes in so many data sets at once and no more",
            remedy="Send it again after the seconds that Retry-After says",
        )
        """What is done with an upload included."""
        self._lock = Lock()
        self.metrics = ServiceMetrics(lambda: self.repository)
        self.database_writes = RememberedCheck(lambda: self.repository.check_writable())
        self.data_store_works = RememberedCheck(lambda: self.shelf.check())
        self.event_streams = EventStreams(settings.max_event_streams, self.metrics)
        self.is_stopping: Callable[[], bool] = lambda: False
        """Whether the server was told to stop: answers without an end then end."""

    @property
    def repository(self) -> Repository:
        """The database. Raises StorageUnavailableError or SchemaRevisionError if it cannot be used."""
        with self._lock:
            if self._repository is None:
                self._repository = self._opened = open_repository(self._settings.database_url)
            return self._repository

    async def commit_mark(self) -> str | None:
        """Of the database (`Repository.commit_mark`), while the event loop goes on; raises as `repository` does."""
        repository = self._repository
        if repository is None:
            # By threads of the loop's own: FastAPI's are taken by requests that wait for the database.
            loop = asyncio.get_running_loop()
            repository = await loop.run_in_executor(None, lambda: self.repository)
        return await repository.commit_mark_on_loop()

    @property
    def shelf(self) -> DatasetShelf:
        """The data sets of `repository`; raises as it does."""
        return DatasetShelf(self.repository, self.store)

    @property
    def store(self) -> DataStore:
        """The data store. Raises MissingExtraError or InputError if `LOP_DATA_STORE` cannot be used."""
        with self._lock:
            if self._store is None:
                self._store = open_store(self._settings.data_store)
            return self._store

    @property
    def settings(self) -> Settings:
        """What the operator set."""
        return self._settings

    @property
    def planner(self) -> Planner:
        """The planner over `repository`; raises as it does."""
        repository = self.repository
        with self._lock:
            if self._planner is None:
                predictors = PredictorCache(
                    repository,
                    capacity=self._settings.cached_predictors,
                )
                self._planner = Planner(repository, predictors)
            return self._planner

    @property
    def curve_drawer(self) -> CurveDrawer:
        """What draws the quality of all methods over `planner`; raises as it does."""
        planner = self.planner
        with self._lock:
            if self._drawer is None:
                self._drawer = CurveDrawer(planner)
            return self._drawer

    def close(self) -> None:
        """Close the connections that were opened here; a repository that was handed in stays open."""
        with self._lock:
            if self._opened is not None:
                self._opened.close()
