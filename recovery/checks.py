"""Whether a pruned checkpoint and its teacher belong together, before anything is loaded."""

from pathlib import Path
from typing import TYPE_CHECKING

from pruning.anatomy.layer_config import recorded_architecture
from pruning.checkpoints.anatomy_reader import layer_shapes, load_config, read_anatomy
from pruning.checkpoints.loading import PLAN_NAME
from pruning.errors import CheckpointError, FingerprintMismatchError
from pruning.planning.plan import PruningPlan

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_TEACHER = "Give the dense checkpoint that the pruned one was cut from: --teacher FOLDER"


def checked_plan(pruned: Path, teacher: Path) -> PruningPlan | None:
    """The plan that lies in `pruned`; None if it was saved again without one.

    Raises:
        CheckpointError: a folder is damaged or quantised, `pruned` is not pruned, or `teacher` is.
        FingerprintMismatchError: they are not of one dense model.
    """
    config, dense = _unquantised(pruned), _unquantised(teacher)
    plan = PruningPlan.load(pruned / PLAN_NAME) if (pruned / PLAN_NAME).is_file() else None
    if plan is None and recorded_architecture(config) is None:
        raise CheckpointError(
            "what is recovered is a pruned checkpoint",
            values=f"{pruned}: config.json has no per_layer_config, and there is no {PLAN_NAME}",
            remedy="Make one with `lop apply`",
        )
    if recorded_architecture(dense) is not None:
        raise CheckpointError("the teacher is the dense model", values=f"{teacher} is pruned", remedy=_TEACHER)
    own, other = (x.get_text_config(decoder=True) for x in (config, dense))
    for what in ("model_type", "vocab_size", "hidden_size", "num_hidden_layers"):
        found = getattr(own, what, None), getattr(other, what, None)
        if found[0] != found[1]:
            raise FingerprintMismatchError(
                f"pruned model and teacher must have one {what}",
                values=f"{pruned} has {found[0]}, {teacher} has {found[1]}",
                remedy=_TEACHER,
            )
    if config.model_type != dense.model_type or layer_shapes(config) != layer_shapes(dense):
        raise FingerprintMismatchError(
            "the pruned model's layers must be cut from the teacher's",
            values=f"{pruned} is of a {config.model_type}, {teacher} is a {dense.model_type}, or layers differ in size",
            remedy=_TEACHER,
        )
    if plan is not None:
        plan.check_fingerprint(read_anatomy(teacher).fingerprint)
    return plan


def _unquantised(folder: Path) -> "PreTrainedConfig":
    config = load_config(folder)
    sections = (config, config.get_text_config(decoder=True))
    if found := next((x for section in sections if (x := getattr(section, "quantization_config", None))), None):
        method = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
        raise CheckpointError(
            "weights that are trained must be plain numbers",
            values=f"{folder}: quantization_config says {method!r}",
            remedy="Recover the unquantised checkpoint, then quantise",
        )
    return config
