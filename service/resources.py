"""What one application holds open while it runs: its database, its predictors, its planner."""

from threading import Lock

from service.planner import Planner
from service.predictor_cache import PredictorCache
from service.settings import Settings
from storage.contract import Repository
from storage.sql_repository import SqlRepository, open_repository


class Resources:
    """Opened on first use, so that building an application costs nothing and needs no database."""

    def __init__(self, settings: Settings, repository: Repository | None = None) -> None:
        self._settings = settings
        self._repository = repository
        self._opened: SqlRepository | None = None
        self._planner: Planner | None = None
        self._lock = Lock()

    @property
    def repository(self) -> Repository:
        """The database. Raises StorageUnavailableError or SchemaRevisionError if it cannot be used."""
        with self._lock:
            if self._repository is None:
                self._repository = self._opened = open_repository(self._settings.database_url)
            return self._repository

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

    def close(self) -> None:
        """Close the connections that were opened here; a repository that was handed in stays open."""
        with self._lock:
            if self._opened is not None:
                self._opened.close()
