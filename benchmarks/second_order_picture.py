"""The picture of `benchmarks.second_order`: validation KL, a column a model and a row a kind of parts.

Rows, where there are figures for them: after uniform cuts, over FFN sparsity; of weights that are zero, over their
share; of units and bits, over the share of bytes that is left.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lop.console.pictures import require_pyplot

Row = Mapping[str, Any]

_AXES = {"cuts": "FFN sparsity, uniform", "ecoflap": "share of zeros", "joint": "share of the sites' bytes"}
"""By part: what its rows lie over."""


def draw_second_order(rows: Sequence[Row], path: Path) -> None:
    """Write the picture of those of all `rows` that it shows to `path`; none, if it shows none."""
    shown = [row for row in rows if row["part"] in _AXES]
    names, parts = (list(dict.fromkeys(row[key] for row in shown)) for key in ("model", "part"))
    if not shown:
        return
    pyplot = require_pyplot()
    size = (5.2 * len(names), 4.2 * len(parts))
    figure, grid = pyplot.subplots(len(parts), len(names), figsize=size, layout="constrained", squeeze=False)
    for part, panels in zip(parts, grid, strict=True):
        for name, axes in zip(names, panels, strict=True):
            own = [row for row in shown if (row["part"], row["model"]) == (part, name)]
            for label in dict.fromkeys(map(_label, own)):
                points = sorted((_place(row), row["kl"]) for row in own if _label(row) == label)
                axes.plot(*zip(*points, strict=True), marker="o", label=label)
            axes.set(title=name, xlabel=_AXES[part], ylabel="KL to dense on validation, nats", yscale="log")
            if own:
                axes.legend(fontsize="small")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _label(row: Row) -> str:
    if row["part"] == "ecoflap":
        of = "" if row["modules"] == "all" else f", {row['modules']}"
        return f"{row['step']}, {row['pattern'] or row['ratios']}{of}"
    return str(row["variant"] if row["part"] == "cuts" else row["kind"]).replace("_", " ")


def _place(row: Row) -> float:
    return float(row["share"] if row["part"] == "joint" else row["sparsity"])
