"""Trained predictors, loaded from the store once and kept in memory while they are asked for."""

from collections import OrderedDict
from collections.abc import Sequence
from threading import BoundedSemaphore, Lock
from typing import TYPE_CHECKING

from pruning.anatomy import ModelAnatomy
from pruning.limits import Limits
from storage.contract import Repository
from storage.records import PredictorRecord

if TYPE_CHECKING:
    from policy_model.predictor import Prediction, Predictor

# Predictions at once: two keep two cores busy, and more would only take turns.
MAX_CONCURRENT_PREDICTIONS = 2


class PredictorCache:
    """At most `capacity` predictors in memory, the least recently used one leaves first. Thread-safe.

    Predictions need numpy only: a server never imports torch.
    """

    def __init__(self, repository: Repository, *, capacity: int) -> None:
        self._repository = repository
        self.capacity = capacity
        self._loaded: OrderedDict[str, Predictor] = OrderedDict()
        self._loading = Lock()
        self._slots = BoundedSemaphore(MAX_CONCURRENT_PREDICTIONS)

    def __len__(self) -> int:
        return len(self._loaded)

    def get(self, record: PredictorRecord) -> "Predictor":
        """The predictor of `record`, loaded if need be; of racing threads one loads and the others wait.

        Raises:
            CheckpointError: this version cannot read it.
        """
        with self._loading:
            if record.id not in self._loaded:
                self._loaded[record.id] = self._load(record)
            self._loaded.move_to_end(record.id)
            while len(self._loaded) > self.capacity:
                self._loaded.popitem(last=False)
            return self._loaded[record.id]

    def predict(self, record: PredictorRecord, anatomy: ModelAnatomy, limits: Limits) -> "Prediction":
        """Widths [L] that meet `limits`, with the quality to expect. Blocks: call it off the event loop.

        Raises what `get` and `Predictor.plan_widths` raise.
        """
        predictor = self.get(record)
        with self._slots:
            return predictor.plan_widths(anatomy, limits)

    def judge(self, record: PredictorRecord, widths: Sequence[int]) -> "Prediction":
        """The quality to expect of `widths` [L] that another method chose; blocks, and raises what `get` raises."""
        predictor = self.get(record)
        with self._slots:
            return predictor.judge(widths)

    def _load(self, record: PredictorRecord) -> "Predictor":
        from policy_model.predictor import Predictor

        return Predictor.from_bytes(self._repository.get_artifact(record.weights_sha256).content, record.config)
