"""The picture that the demo draws: what the three models answer, and what the two plans keep of each layer."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lop.console.pictures import require_pyplot, save_figure
from lop.workflows.demo import DemoResult

_COLOURS = {"dense": "#777777", "uniform": "#c96f4a", "lop": "#2f6f9f"}


def draw_demo(result: DemoResult, widths: Mapping[str, Sequence[int]], dense_width: int, path: Path) -> None:
    """Exact match and agreement of dense, uniform and planned model, and the FFN widths [L] that each plan keeps."""
    pyplot = require_pyplot()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), width_ratios=(1, 1.6), layout="constrained")
    shares = demo_shares(result)
    for shift, name in zip((-0.27, 0.0, 0.27), _COLOURS, strict=True):
        found = [(place, of[name]) for place, of in enumerate(shares.values()) if name in of]
        heights = [100 * share for _, share in found]
        bars = left.bar([place + shift for place, _ in found], heights, width=0.25, label=name, color=_COLOURS[name])
        left.bar_label(bars, fmt="%.1f", fontsize=9)
    left.set_xticks(range(len(shares)), list(shares))
    left.set_ylim(0, 110)
    left.set_yticks(range(0, 101, 20))
    left.set_ylabel("on validation, %")
    left.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.15), frameon=False)
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
    save_figure(figure, path)
    pyplot.close(figure)


def demo_shares(result: DemoResult) -> dict[str, dict[str, float]]:
    """What is drawn of each model: exact match if the dense one has any, and agreement, which that has by nature."""
    accuracy = {"dense": result.dense_accuracy, "uniform": result.uniform_accuracy, "lop": result.lop_accuracy}
    agreement = {"uniform": result.uniform_agreement, "lop": result.lop_agreement}
    return {**({"exact match": accuracy} if result.dense_accuracy else {}), "agreement with dense": agreement}
