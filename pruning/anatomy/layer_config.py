"""Sizes that differ by layer in a config: transformers' `per_layer_config`, written and read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.anatomy.families import Family, family_of
from pruning.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_GLOBAL_ACCESS = "allow_global_per_layer_attribute_access"
_HEADS, _GROUPS = "num_attention_heads", "num_key_value_heads"


def layer_overrides(architecture: Architecture, anatomy: ModelAnatomy, family: Family) -> dict[int, dict[str, int]]:
    """What each layer that differs from dense has instead of the config's own numbers."""
    overrides: dict[int, dict[str, int]] = {}
    for site, option in architecture.items:
        changed = {family.width_attribute: option.units}
        if site.sublayer is Sublayer.ATTENTION:
            heads = option.units * anatomy.layers[site.layer].heads_per_group
            changed = {_HEADS: heads, _GROUPS: option.units}
        overrides[site.layer] = changed | overrides.get(site.layer, {})
    return overrides


def recorded_architecture(config: "PreTrainedConfig") -> Architecture | None:
    """What a config says that each layer has; None for a dense model.

    Raises UnsupportedModelError if layers differ in anything but FFN widths and heads.
    """
    text = config.get_text_config(decoder=True)
    if not getattr(text, "is_heterogeneous", False):
        return None
    overrides: Mapping[Any, Mapping[str, Any]] = text.to_dict().get("per_layer_config", {})
    by_layer = {int(layer): values for layer, values in overrides.items()}
    width = family_of(text).width_attribute
    if others := {name for values in by_layer.values() for name in values} - {width, _HEADS, _GROUPS}:
        raise UnsupportedModelError(
            f"layers may differ in {width}, {_HEADS} and {_GROUPS}",
            values=f"per_layer_config also has {', '.join(sorted(others))}",
            remedy="Load it with the library that made it",
        )
    groups = getattr(text, _GROUPS, None) or getattr(text, _HEADS)
    dense = {Sublayer.FFN: (width, getattr(text, width)), Sublayer.ATTENTION: (_GROUPS, groups)}
    return Architecture.of(
        (Site(layer, sublayer), Option(int(by_layer[layer][name])))
        for layer in range(text.num_hidden_layers)
        for sublayer, (name, units) in dense.items()
        if by_layer.get(layer, {}).get(name, units) != units
    )


def document_with_global_access(folder: Path) -> dict[str, Any] | None:
    """The folder's config.json with what transformers' own model code needs, if it lacks that; None if it does not.

    Where layers differ, that code still reads the global sizes when it is built, which a config must allow. Configs
    that other tools write do not always say so. What cannot be read is left to transformers, which says why.
    """
    try:
        document: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    sections = [document, *document.values()] if isinstance(document, dict) else []
    lacking = [
        x for x in sections if isinstance(x, dict) and x.get("per_layer_config") and not x.get(_GLOBAL_ACCESS, False)
    ]
    for section in lacking:
        section[_GLOBAL_ACCESS] = True
    return document if lacking else None


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
