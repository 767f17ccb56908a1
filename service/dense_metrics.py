"""What the dense model itself is worth on a calibration set: whether exact match says anything there."""

from pruning.measuring.metrics import Metrics
from storage.contract import Repository
from storage.records import ModelRecord


def dense_metrics(repository: Repository, model: ModelRecord, calibration_id: str) -> Metrics | None:
    """The stored metrics of the dense model on the set, which every scan begins with; None if it was not evaluated."""
    dense = tuple(layer.ffn_width for layer in model.anatomy.layers)
    return repository.find_samples(model.id, model.ranking_sha256, calibration_id, [dense]).get(dense)
