"""Pictures of plans: FFN channels upwards and KV groups downwards, a column a layer.

What is removed stays as a pale bar, so depth of colour tells it from what is kept; a skipped sub-layer is hatched, and
a layer of which nothing is run is cross-hatched from top to bottom. No two of these differ in hue alone, and the two
hues are those of Okabe and Ito's palette that are told apart with any colour vision.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lop.console.kept_layers import ATTENTION, FFN, KeptLayers
from lop.console.pictures import require_pyplot, save_figure

_COLOURS = {FFN: "#0072b2", ATTENTION: "#e69f00"}
_NAMES = {FFN: "FFN channels kept", ATTENTION: "KV groups kept"}
_REMOVED = "#e4e4e4"
_SKIPPED = {"facecolor": "white", "edgecolor": "#6e6e6e", "hatch": "//////", "linewidth": 0.0}
_GONE = {"facecolor": "white", "edgecolor": "#111111", "hatch": "xxxxxx", "linewidth": 0.0}
_WEIGHTS = {FFN: "FFN weights that stay", ATTENTION: "attention weights that stay"}
_LEGEND = (*_NAMES.values(), *_WEIGHTS.values(), "zeroed", "removed", "skipped", "whole layer skipped")
_BAR = 0.8
_FEW_LAYERS = 24
"""So many are all numbered."""


def draw_plans(plans: Sequence[tuple[str, KeptLayers]], path: Path) -> None:
    """A panel for each plan, under its title, one above the other. Raises InputError if the file cannot be written."""
    pyplot = require_pyplot()
    size = (picture_width(plans), 0.7 + panel_height(plans) * len(plans))
    figure = pyplot.figure(figsize=size, layout="constrained")
    draw_panels(figure, plans)
    save_figure(figure, path)
    pyplot.close(figure)


def picture_width(plans: Sequence[tuple[str, KeptLayers]]) -> float:
    """Inches that so many layers need."""
    return min(max(7.0, 1.6 + 0.26 * max(kept.num_layers for _, kept in plans)), 18.0)


def panel_height(plans: Sequence[tuple[str, KeptLayers]]) -> float:
    """Inches of a panel: of two halves, or of one where no plan may change attention."""
    return 2.3 if _with_attention(plans) else 1.6


def draw_panels(figure: Any, plans: Sequence[tuple[str, KeptLayers]]) -> None:
    """The panels, and one legend, into a matplotlib figure or a part of one."""
    with_attention = _with_attention(plans)
    axes = figure.subplots(len(plans), 1, squeeze=False)[:, 0]
    for axis, (title, kept) in zip(axes, plans, strict=True):
        _draw_layers(axis, kept, with_attention=with_attention)
        axis.set_title(title, fontsize=10, loc="left")
    axes[-1].set_xlabel("decoder layer")
    found = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    labels = [label for label in _LEGEND if label in found]
    handles = [found[label] for label in labels]
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8)


def _with_attention(plans: Sequence[tuple[str, KeptLayers]]) -> bool:
    """Whether attention is drawn: where it may change, that it stays whole is a choice, too."""
    return any(kept.may_change_attention or kept.changes_attention for _, kept in plans)


def _draw_layers(axis: Any, kept: KeptLayers, *, with_attention: bool) -> None:
    """One plan into `axis`: kept fractions from -1 (all KV groups) over 0 to 1 (all channels)."""
    gone, names = set(kept.gone), _WEIGHTS if kept.zeroes else _NAMES
    for sublayer, sign in ((FFN, 1.0), (ATTENTION, -1.0)):
        if sublayer is ATTENTION and not with_attention:
            continue
        here = [i for i in range(kept.num_layers) if i not in gone]
        fractions, skipped = kept.fractions(sublayer), kept.skipped(sublayer)
        axis.bar(here, [sign] * len(here), _BAR, color=_REMOVED, label="zeroed" if kept.zeroes else "removed")
        axis.bar(here, [sign * fractions[i] for i in here], _BAR, color=_COLOURS[sublayer], label=names[sublayer])
        if skipped:
            axis.bar(skipped, [sign] * len(skipped), _BAR, label="skipped", **_SKIPPED)
    if gone:
        bottom = -1.0 if with_attention else 0.0
        axis.bar([*gone], [1.0 - bottom] * len(gone), _BAR, bottom=bottom, label="whole layer skipped", **_GONE)
    ends = [-1.0, -0.5] if with_attention else []
    axis.axhline(0.0, color="white", linewidth=1.5)
    axis.set_yticks([*ends, 0.0, 0.5, 1.0], ["100%", "50%", "0", "50%", "100%"][-3 - len(ends) :])
    axis.set_ylim(-1.04 if with_attention else 0.0, 1.04)
    axis.set_ylabel("KV groups | FFN" if with_attention else "FFN", fontsize=9)
    axis.set_xlim(-0.7, kept.num_layers - 0.3)
    numbered = 1 if kept.num_layers <= _FEW_LAYERS else 2 if kept.num_layers <= 2 * _FEW_LAYERS else 4
    axis.set_xticks(range(0, kept.num_layers, numbered))
    axis.set_xticks(range(kept.num_layers), minor=True)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
