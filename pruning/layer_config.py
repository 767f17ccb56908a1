"""Sizes that differ by layer in a config: transformers' `per_layer_config`, written and read."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pruning.anatomy import DecoderSizes, ModelAnatomy
from pruning.families import Family, family_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_HEADS, _GROUPS = "num_attention_heads", "num_key_value_heads"


def layer_overrides(sizes: DecoderSizes, anatomy: ModelAnatomy, family: Family) -> dict[int, dict[str, int]]:
    """What each layer that differs from dense has instead of the config's own numbers."""
    overrides: dict[int, dict[str, int]] = {}
    for layer, width, groups in zip(anatomy.layers, sizes.ffn_widths, sizes.kv_groups, strict=True):
        changed = {family.width_attribute: width} if width != layer.ffn_width else {}
        if groups != layer.num_kv_groups:
            changed |= {_HEADS: groups * layer.heads_per_group, _GROUPS: groups}
        if changed:
            overrides[layer.index] = changed
    return overrides


def recorded_sizes(config: "PreTrainedConfig") -> DecoderSizes | None:
    """What a config says that each layer has; None for a dense model."""
    text = config.get_text_config(decoder=True)
    if not getattr(text, "is_heterogeneous", False):
        return None
    overrides: Mapping[Any, Mapping[str, Any]] = text.to_dict().get("per_layer_config", {})
    by_layer = {int(layer): values for layer, values in overrides.items()}
    width = family_of(text).width_attribute
    layers = [by_layer.get(index, {}) for index in range(text.num_hidden_layers)]
    groups = getattr(text, _GROUPS, None) or getattr(text, _HEADS)
    return DecoderSizes(
        tuple(int(values.get(width, getattr(text, width))) for values in layers),
        tuple(int(values.get(_GROUPS, groups)) for values in layers),
    )


class LayerConfig:
    """A config as one layer sees it: some numbers are its own, everything else is the model's, also what changes later.

    For attention code that splits fused projections by numbers that it reads from its config.
    """

    def __init__(self, config: Any, **own: int) -> None:
        self.__dict__.update(own, _model_config=config)

    def __getattr__(self, name: str) -> Any:
        if name == "_model_config":  # not there yet: the object is being copied
            raise AttributeError(name)
        return getattr(self._model_config, name)
