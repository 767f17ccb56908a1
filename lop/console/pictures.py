"""Pictures of results. Needs matplotlib: the extra `plots`."""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.atomic_file import MAX_NAME_BYTES, replace_file
from pruning.errors import InputError
from pruning.missing_packages import missing_extra

if TYPE_CHECKING:
    from lop.console.kept_layers import KeptLayers

_FORMATS = (".png", ".svg", ".pdf")


def require_pyplot() -> Any:
    """matplotlib's pyplot without a display; raises MissingExtraError that names the install command."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise missing_extra("plots", "drawing needs matplotlib") from error
    return pyplot


def check_picture(path: Path) -> None:
    """Raises, before any work is done, what drawing into `path` would raise in the end."""
    require_pyplot()
    reason = None
    if path.suffix.lower() not in _FORMATS or not path.parent.is_dir():
        reason = f"a picture is a file {', '.join(_FORMATS)} in a folder that exists"
    elif len(os.fsencode(path.name)) > MAX_NAME_BYTES:
        reason = f"a file's name has {MAX_NAME_BYTES} bytes at most"
    elif path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        reason = "a picture must be a file that can be written"
    if reason is not None:
        raise InputError(reason, values=str(path), remedy="Choose another")


def save_figure(figure: Any, path: Path) -> None:
    """Raises InputError if the file cannot be written; it is whole or not there."""
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix.lower().removeprefix("."), dpi=120)
    try:
        replace_file(path, content.getvalue())
    except OSError as error:
        raise InputError(
            "the picture must be writable",
            values=f"{path}: {error.strerror}",
            remedy="Free some room, or choose another",
        ) from error


def draw_comparison(
    rows: Sequence[Mapping[str, Any]],
    path: Path,
    *,
    exact_match: bool = True,
    kept: "Sequence[tuple[str, KeptLayers]]" = (),
) -> None:
    """Quality against sparsity, a curve a method. `rows` hold method, sparsity, kl, accuracy and agreement.

    A panel for KL, one for exact match unless it tells nothing (`exact_match`), one for agreement if all have it. Plans
    in `kept`, if given, are drawn layer by layer below.
    """
    panels = comparison_panels(rows, exact_match=exact_match)
    whole, figure = _figure((1.4 + 4.8 * len(panels), 4.2), kept)
    axes = figure.subplots(1, len(panels), squeeze=False)
    for index, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        own = sorted((row for row in rows if row["method"] == method), key=lambda row: float(row["sparsity"]))
        style = _curve_style(method, index)
        for axis, (name, _, scale) in zip(axes[0], panels, strict=True):
            curve = [scale * row[name] for row in own]
            axis.plot([row["sparsity"] for row in own], curve, label=method if axis is axes[0][0] else None, **style)
    axes[0][0].set_yscale("log")
    for axis, (_, label, _) in zip(axes[0], panels, strict=True):
        axis.set_ylabel(label)
        axis.set_xlabel("sparsity")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    save_figure(whole, path)
    require_pyplot().close(whole)


def comparison_panels(rows: Sequence[Mapping[str, Any]], *, exact_match: bool) -> list[tuple[str, str, float]]:
    """What a comparison draws: a field of `rows`, how its axis is called, and what its values are multiplied by."""
    panels = [("kl", "KL to the dense model, nats", 1.0)]
    if exact_match:
        panels.append(("accuracy", "exact match, %", 100.0))
    if all(row.get("agreement") is not None for row in rows):
        panels.append(("agreement", "answer tokens as the dense model's, %", 100.0))
    return panels


def draw_search(
    curves: Mapping[str, Mapping[str, Sequence[float]]],
    path: Path,
    *,
    first: Mapping[str, int] | None = None,
    found: "Sequence[tuple[str, KeptLayers]]" = (),
) -> None:
    """Least score so far against evaluations: a panel a target (by its label), a curve a method (or whatever it names).

    `first` says how many evaluations a method had spent before the first of its curve: its share of a scan. What was
    `found` for each target, if given, is drawn layer by layer below.
    """
    columns = 2 if len(curves) == 4 else min(3, len(curves))
    rows = -(-len(curves) // columns)
    whole, figure = _figure((0.8 + 3.4 * columns, 0.4 + 2.7 * rows), found)
    axes = figure.subplots(rows, columns, squeeze=False)
    names = list(dict.fromkeys(name for panel in curves.values() for name in panel))
    for axis in axes.flat[len(curves) :]:
        axis.remove()
    for axis, (label, panel) in zip(axes.flat, curves.items(), strict=False):
        for name, curve in panel.items():
            style = _curve_style(name, names.index(name)) | {"marker": None}
            spent = (first or {}).get(name, 0)
            axis.step(range(spent + 1, spent + len(curve) + 1), curve, where="post", label=name, **style)
        axis.set_yscale("log")
        axis.set_title(label, fontsize=10)
        axis.set_xlabel("evaluations")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    for row in axes:
        row[0].set_ylabel("least score so far, nats")
    if len(names) > 1:
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    save_figure(whole, path)
    require_pyplot().close(whole)


def _figure(size: tuple[float, float], kept: "Sequence[tuple[str, KeptLayers]]") -> tuple[Any, Any]:
    """A figure, and the part of it that is for curves, `size` in inches: all, unless plans are `kept` below them."""
    from lop.console.layer_pictures import draw_panels, panel_height, picture_width

    pyplot = require_pyplot()
    if not kept:
        figure = pyplot.figure(figsize=size, layout="constrained")
        return figure, figure
    width, height = size
    below = 0.7 + panel_height(kept) * len(kept)
    whole = pyplot.figure(figsize=(max(width, picture_width(kept)), height + below), layout="constrained")
    curves, layers = whole.subfigures(2, 1, height_ratios=(height, below))
    draw_panels(layers, kept)
    return whole, curves


def _curve_style(method: str, index: int) -> dict[str, Any]:
    """What this project makes is drawn thick, the rest thin; markers tell curves apart without colour."""
    ours = method in ("lop", "mcts")
    return {
        "color": {"lop": "#2f6f9f", "mcts": "#17395c"}.get(method, f"C{index % 10}"),
        "marker": "osD^v<>PX*ph"[index % 12],
        "markersize": 4.5,
        "linewidth": 2.4 if ours else 1.2,
        "zorder": 3 if ours else 2,
    }
