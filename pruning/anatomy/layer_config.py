"""Sizes that differ by layer in a config: transformers' `per_layer_config`, written and read.

A layer's sub-layers that are skipped are listed under `skip`, by the names that transformers gives them.
"""

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
_HEADS, _GROUPS, _SKIP = "num_attention_heads", "num_key_value_heads", "skip"
_SKIP_NAMES = {"attention": Sublayer.ATTENTION, "mlp": Sublayer.FFN}
"""transformers' names of what a layer can skip (docs/source/en/heterogeneous_configurations.md); vLLM's too."""

Overrides = dict[str, int | list[str]]
"""What one layer has instead of the config's own numbers."""


def layer_overrides(architecture: Architecture, anatomy: ModelAnatomy, family: Family) -> dict[int, Overrides]:
    """What each layer that differs from dense has instead of the config's own numbers."""
    overrides: dict[int, Overrides] = {}
    for site, option in architecture.items:
        layer = overrides.setdefault(site.layer, {})
        if option.units == 0:
            continue
        if site.sublayer is Sublayer.FFN:
            layer[family.width_attribute] = option.units
        else:
            layer[_HEADS] = option.units * anatomy.layers[site.layer].heads_per_group
            layer[_GROUPS] = option.units
    for layer_index, layer in overrides.items():
        skipped = [name for name, half in _SKIP_NAMES.items() if _skips(architecture, Site(layer_index, half))]
        if skipped:
            layer[_SKIP] = list[str](skipped)
    return overrides


def _skips(architecture: Architecture, site: Site) -> bool:
    return architecture.options.get(site) == Option(0)


def recorded_architecture(config: "PreTrainedConfig") -> Architecture | None:
    """What a config says that each layer has; None for a dense model.

    Raises UnsupportedModelError if layers differ in anything but FFN widths, heads, and what of the two they skip.
    """
    text = config.get_text_config(decoder=True)
    if not getattr(text, "is_heterogeneous", False):
        return None
    overrides: Mapping[Any, Mapping[str, Any]] = text.to_dict().get("per_layer_config", {})
    by_layer = {int(layer): values for layer, values in overrides.items()}
    width = family_of(text).width_attribute
    others = {name for values in by_layer.values() for name in values} - {width, _HEADS, _GROUPS, _SKIP}
    others |= {f"{_SKIP}: {name}" for values in by_layer.values() for name in {*values.get(_SKIP, ())} - {*_SKIP_NAMES}}
    if others:
        raise UnsupportedModelError(
            f"layers may differ in {width}, {_HEADS} and {_GROUPS}, and skip {' and '.join(_SKIP_NAMES)}",
            values=f"per_layer_config also has {', '.join(sorted(others))}",
            remedy="Load it with the library that made it",
        )
    skipped = {
        Site(layer, _SKIP_NAMES[name]): Option(0)
        for layer, values in by_layer.items()
        for name in values.get(_SKIP, ())
    }
    groups = getattr(text, _GROUPS, None) or getattr(text, _HEADS)
    dense = {Sublayer.FFN: (width, getattr(text, width)), Sublayer.ATTENTION: (_GROUPS, groups)}
    cut = {
        Site(layer, sublayer): Option(int(by_layer[layer][name]))
        for layer in range(text.num_hidden_layers)
        for sublayer, (name, units) in dense.items()
        if by_layer.get(layer, {}).get(name, units) != units
    }
    if gone := next((site for site, option in cut.items() if option.units < 1), None):
        raise UnsupportedModelError(
            "a sub-layer keeps a channel or a KV group, or is listed under skip",
            values=f"per_layer_config takes the {gone.sublayer} of layer {gone.layer} away",
            remedy="Load it with the library that made it",
        )
    return Architecture.of(cut | skipped)


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
