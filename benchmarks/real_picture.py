"""The picture of the real benchmark: validation KL and agreement with the dense model, against sparsity."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lop.console.pictures import require_pyplot

_OURS = {"lop": "#2f6f9f", "mcts": "#17395c"}


def draw_real(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A curve a method; targets that nobody searched are hollow. An unknown agreement is not drawn."""
    pyplot = require_pyplot()
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for index, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        ours = method in _OURS
        style = {
            "color": _OURS.get(method, f"C{index % 10}"),
            "linewidth": 2.4 if ours else 1.2,
            "zorder": 3 if ours else 2,
        }
        for axis, key, scale in ((axes[0], "kl", 1), (axes[1], "agreement", 100)):
            own = [row for row in rows if row["method"] == method and row[key] is not None]
            points = sorted((row["sparsity"], scale * row[key], row["searched"]) for row in own)
            label = method if axis is axes[0] else None
            marker = "osD^v<>PX*ph"[index % 12]
            axis.plot(
                [x for x, _, _ in points], [y for _, y, _ in points], marker, ls="-", ms=4.5, label=label, **style
            )
            hollow = [(x, y) for x, y, searched in points if not searched]
            axis.plot([x for x, _ in hollow], [y for _, y in hollow], marker, ms=4.5, mfc="white", ls="", **style)
    axes[0].set_yscale("log")
    axes[0].set_ylabel("KL to the dense model, nats")
    axes[1].set_ylabel("answer tokens as the dense model's, %")
    for axis in axes:
        axis.set_xlabel("FFN sparsity (hollow: not searched)")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
