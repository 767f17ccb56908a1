"""Which of vLLM's models are pruned checkpoints, and what their layers keep."""

from typing import Any

from pruning.anatomy.architecture import Architecture
from pruning.anatomy.families import FAMILIES
from pruning.anatomy.layer_config import recorded_architecture

_MARK = "_lop_extends"


def architecture_of(config: Any) -> Architecture | None:
    """What each layer keeps, by a config of transformers; None for a model that is not ours.

    vLLM's own models with layers that differ (Gemma 4) are of families that the table does not list.

    Raises UnsupportedModelError if layers differ in anything but FFN widths, heads, and what of the two they skip.
    """
    text = config.get_text_config(decoder=True)
    if not getattr(text, "is_heterogeneous", False) or text.model_type not in FAMILIES:
        return None
    return recorded_architecture(config)


def is_pruned(config: Any) -> bool:
    """Whether `config` is of a pruned checkpoint, also where transformers is too old to know of sizes by layer."""
    text = config.get_text_config(decoder=True)
    recorded = getattr(text, "is_heterogeneous", False) or isinstance(getattr(text, "per_layer_config", None), dict)
    return recorded and text.model_type in FAMILIES


def is_extended(function: Any) -> bool:
    """Whether `function` is already one of ours."""
    return hasattr(function, _MARK)


def mark(function: Any) -> None:
    """Makes `is_extended` true."""
    setattr(function, _MARK, True)
