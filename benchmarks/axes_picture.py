"""The picture of `benchmarks.axes`: validation KL against the target, by space and by method."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.axes_predictor import LOP
from benchmarks.axes_searches import EVOLUTION, MILP, SEARCH, SHORTGPT, UNIFORM
from benchmarks.axes_targets import Kind
from lop.console.pictures import require_pyplot, save_figure
from pruning.planning.axis_spaces import SpaceName

SPACES = {"ffn": "#c06a2b", "attention": "#7a5aa6", "layers": "#5c8a4a", "all": "#17395c"}
METHODS = {
    SEARCH: "#17395c",
    LOP: "#2f6f9f",
    MILP: "#b0563f",
    EVOLUTION: "#c79a3a",
    SHORTGPT: "#5c8a4a",
    UNIFORM: "#8a8a8a",
}
AXES = {
    Kind.SPARSITY: "share of the decoder that goes",
    Kind.LATENCY: "share of the dense model's time that stays",
}

Row = Mapping[str, Any]


def draw_axes(rows: Sequence[Row], path: Path) -> None:
    """A row of panels a model: the search in every space, every method in the joint one, each by both kinds of target.
    Targets that no search was trained on are hollow."""
    pyplot = require_pyplot()
    models = list(dict.fromkeys(row["model"] for row in rows))
    kinds = [kind for kind in Kind if any(row["kind"] == kind for row in rows)]
    figure, axes = pyplot.subplots(
        len(models),
        2 * len(kinds),
        figsize=(1.6 + 7.2 * len(kinds), 3.4 * len(models)),
        squeeze=False,
        layout="constrained",
    )
    for model, panels in zip(models, axes, strict=True):
        for index, kind in enumerate(kinds):
            own = [row for row in rows if row["model"] == model and row["kind"] == kind]
            of_search = [row for row in own if row["method"] == SEARCH]
            joint = [row for row in own if row["space"] == SpaceName.ALL]
            _draw(panels[2 * index], of_search, "space", SPACES, f"{model}: {SEARCH} in each space", AXES[kind])
            _draw(panels[2 * index + 1], joint, "method", METHODS, f"{model}: methods in 'all'", AXES[kind])
        panels[0].set_ylabel("validation KL, nats")
    save_figure(figure, path)
    pyplot.close(figure)


def _draw(axis: Any, rows: Sequence[Row], by: str, colours: Mapping[str, str], title: str, below: str) -> None:
    """A curve for each of `colours`, the values of `by`."""
    for index, (name, colour) in enumerate(colours.items()):
        own = sorted((row for row in rows if row[by] == name), key=lambda row: float(row["target"]))
        style = {"color": colour, "marker": "osD^vP"[index], "markersize": 4.5}
        style |= {"linewidth": 2.4 if name in (SpaceName.ALL, SEARCH, LOP) else 1.2}
        axis.plot([row["target"] for row in own], [row["validation_kl"] for row in own], label=name, **style)
        hollow = [row for row in own if name == LOP and not row["searched"]]
        points = [row["target"] for row in hollow], [row["validation_kl"] for row in hollow]
        axis.plot(*points, ls="", mfc="white", **style)
    axis.set_yscale("log")
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(below)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    axis.legend(loc="upper left" if below == AXES[Kind.SPARSITY] else "upper right", frameon=False, fontsize=8)
