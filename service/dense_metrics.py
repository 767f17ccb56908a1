"""What the dense model itself is worth on a calibration set: whether exact match says anything there."""

from pruning.anatomy.architecture import DENSE
from pruning.measuring.metrics import Metrics
from storage.contract import Samples
from storage.records import ModelRecord


def dense_metrics(repository: Samples, model: ModelRecord, calibration_id: str) -> Metrics | None:
    """The stored metrics of the dense model on the set, which every scan begins with; None if it was not evaluated."""
    return repository.find_samples(model.id, model.ranking_sha256, calibration_id, [DENSE]).get(DENSE)
