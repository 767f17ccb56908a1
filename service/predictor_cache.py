"""Trained predictors, loaded from the store once and kept in memory while they are asked for."""

import os
from threading import BoundedSemaphore
from typing import TYPE_CHECKING

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture
from pruning.planning.limits import Limits
from service.lru_cache import LruCache
from storage.contract import Artifacts
from storage.records import PredictorRecord

if TYPE_CHECKING:
    from policy_model.predictor import Prediction, Predictor


def usable_cores() -> int:
    """Cores that this process may run on, at least 1: fewer than the machine has where it is confined to some."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class PredictorCache:
    """At most `capacity` predictors in memory, the least recently used one leaves first. Thread-safe.

    Predictions need numpy only: a server never imports torch. A server gives each of them one thread
    (`service.server`), so as many run at once as there are cores: more would only take turns.
    """

    def __init__(self, repository: Artifacts, *, capacity: int) -> None:
        self._repository = repository
        self.capacity = capacity
        self._loaded: LruCache[str, Predictor] = LruCache(capacity)
        self._slots = BoundedSemaphore(usable_cores())

    def __len__(self) -> int:
        return len(self._loaded)

    def get(self, record: PredictorRecord) -> "Predictor":
        """The predictor of `record`, loaded if need be; of racing threads one loads and the others wait.

        Nobody waits while another predictor is loaded.

        Raises:
            CheckpointError: this version cannot read it.
        """
        return self._loaded.get(record.id, lambda: self._load(record))

    def predict(self, record: PredictorRecord, anatomy: ModelAnatomy, limits: Limits) -> "Prediction":
        """What meets `limits`, with the quality to expect. Blocks: call it off the event loop.

        Raises what `get` and `Predictor.plan` raise.
        """
        predictor = self.get(record)
        with self._slots:
            return predictor.plan(anatomy, limits)

    def judge(self, record: PredictorRecord, architecture: Architecture) -> "Prediction":
        """The quality to expect of `architecture` that another method chose; blocks, and raises what `get` raises."""
        predictor = self.get(record)
        with self._slots:
            return predictor.judge(architecture)

    def _load(self, record: PredictorRecord) -> "Predictor":
        from policy_model.predictor import Predictor

        return Predictor.from_bytes(self._repository.get_artifact(record.weights_sha256).content, record.config)
