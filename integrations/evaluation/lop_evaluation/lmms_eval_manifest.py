"""The entry point of group `lmms_eval.models`: lmms-eval loads it while it is being imported itself."""

from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> ModelManifest:
    """The model `lop`."""
    return ModelManifest(model_id="lop", simple_class_path="lop_evaluation.lmms_eval_model.LopLmms")
