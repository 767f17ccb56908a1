"""The picture of `benchmarks.second_order`: validation KL over sparsity, one panel a model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lop.console.pictures import require_pyplot


def draw_second_order(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the picture of all `rows` to `path`."""
    names = list(dict.fromkeys(row["model"] for row in rows))
    pyplot = require_pyplot()
    figure, grid = pyplot.subplots(1, len(names), figsize=(5.2 * len(names), 4.2), layout="constrained", squeeze=False)
    for name, axes in zip(names, grid[0], strict=True):
        for variant in dict.fromkeys(row["variant"] for row in rows):
            own = [row for row in rows if (row["model"], row["variant"]) == (name, variant)]
            axes.plot(
                [row["sparsity"] for row in own],
                [row["kl"] for row in own],
                marker="o",
                label=variant.replace("_", " "),
            )
        axes.set(title=name, xlabel="FFN sparsity, uniform", ylabel="KL to dense on validation, nats", yscale="log")
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
