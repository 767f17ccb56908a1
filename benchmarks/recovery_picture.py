"""The picture of the recovery benchmark: percent of dense against the share removed, a panel a paradigm."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.recovery_figures import percent
from lop.console.pictures import require_pyplot, save_figure


def draw_recovery_table(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Nothing is drawn while there are no rows of the table."""
    grid = [row for row in rows if "paradigm" in row]
    if not grid:
        return
    pyplot = require_pyplot()
    paradigms = list(dict.fromkeys(row["paradigm"] for row in grid))
    figure, axes = pyplot.subplots(1, len(paradigms), figsize=(4.6 * len(paradigms), 4), squeeze=False, sharey=True)
    for axis, paradigm in zip(axes[0], paradigms, strict=True):
        own = sorted((row for row in grid if row["paradigm"] == paradigm), key=lambda row: float(row["ratio"]))
        starts = {row["ratio"]: percent(row, "before") for row in own if row["recovery"] != "reconstruction"}
        axis.plot(list(starts), list(starts.values()), color="#888888", linestyle=":", marker="o", label="none")
        for recovery, data in dict.fromkeys((row["recovery"], row["data"]) for row in own):
            of = [row for row in own if (row["recovery"], row["data"]) == (recovery, data)]
            # The reconstructed model's row is its start: what was trained of it is one step.
            values = [percent(row, "before" if recovery == "reconstruction" else "after") for row in of]
            label = recovery if recovery == "reconstruction" else f"{recovery}, {data:.0%} of the data"
            axis.plot([row["ratio"] for row in of], values, marker="o", label=label)
        axis.set_title(paradigm)
        axis.set_xlabel("share of the decoder removed")
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel("% of dense, validation")
    axes[0][-1].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    save_figure(figure, path)
    pyplot.close(figure)
