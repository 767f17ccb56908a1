"""Pictures of results. Needs matplotlib: the extra `plots`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.errors import MissingExtraError

if TYPE_CHECKING:
    from lop.demo import DemoResult

_COLOURS = {"dense": "#777777", "uniform": "#c96f4a", "lop": "#2f6f9f"}


def require_pyplot() -> Any:
    """matplotlib's pyplot without a display; raises MissingExtraError that names the install command."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise MissingExtraError(
            "drawing needs matplotlib", remedy='Install it with: pip install "lop-service[plots]"'
        ) from error
    return pyplot


def draw_demo(result: "DemoResult", widths: Mapping[str, Sequence[int]], dense_width: int, path: Path) -> None:
    """Accuracy of dense, uniform and planned model, and the FFN widths [L] that each plan keeps."""
    pyplot = require_pyplot()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), width_ratios=(1, 2), layout="constrained")
    accuracy = {"dense": result.dense_accuracy, "uniform": result.uniform_accuracy, "lop": result.lop_accuracy}
    bars = left.bar(list(accuracy), [100 * a for a in accuracy.values()], color=[_COLOURS[k] for k in accuracy])
    left.bar_label(bars, fmt="%.1f")
    left.set_ylim(0, 110)
    left.set_yticks(range(0, 101, 20))
    left.set_ylabel("exact match on validation, %")
    left.set_title(f"{result.target_sparsity:.0%} of FFN channels removed", fontsize=10)
    layers = range(len(next(iter(widths.values()))))
    for shift, (name, row) in zip((-0.2, 0.2), widths.items(), strict=True):
        right.bar([i + shift for i in layers], row, width=0.4, label=name, color=_COLOURS[name])
    right.axhline(dense_width, color=_COLOURS["dense"], linewidth=1, linestyle="--", label="dense")
    right.set_xticks(list(layers))
    right.set_xlabel("decoder layer")
    right.set_ylabel("FFN channels kept")
    right.set_title(f"plan answered in {result.plan_latency_ms:.0f} ms, from {result.samples} samples", fontsize=10)
    right.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.15), frameon=False)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
