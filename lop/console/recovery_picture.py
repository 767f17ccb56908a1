"""The curves of a recovery: loss of every step, and what the selection part said."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lop.console.pictures import require_pyplot, save_figure


def draw_recovery(report: Mapping[str, Any], path: Path) -> None:
    """Loss and its mean over neighbouring steps; KL and exact answers of each evaluation, the start's as lines.

    Raises MissingExtraError without matplotlib, InputError if the file cannot be written.
    """
    pyplot = require_pyplot()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    steps = [point[0] for point in report["curve"]]
    losses = [point[1] for point in report["curve"]]
    left.plot(steps, losses, color="#bbbbbb", linewidth=0.8)
    left.plot(steps, _smoothed(losses), color="#1f4e79")
    left.set_yscale("log")
    left.set_ylabel("training loss")
    seen = [point["step"] for point in report["evaluations"]]
    before = report["selection"]["before"]
    right.plot(seen, [point["kl"] for point in report["evaluations"]], color="#1f4e79", marker="o", label="KL, nats")
    right.axhline(before["kl"], color="#1f4e79", linestyle=":")
    right.set_yscale("log")
    right.set_ylabel("KL to the dense model, selection")
    other = right.twinx()
    exact = [100 * point["accuracy"] for point in report["evaluations"]]
    other.plot(seen, exact, color="#c55a11", marker="s", label="exact answers, %")
    other.axhline(100 * before["accuracy"], color="#c55a11", linestyle=":")
    other.set_ylabel("exact answers, %")
    if report["best_step"]:
        right.axvline(report["best_step"], color="#888888", linewidth=0.8)
    for axis in (left, right):
        axis.set_xlabel("step")
        axis.grid(alpha=0.25)
    save_figure(figure, path)
    pyplot.close(figure)


def _smoothed(values: list[float], window: int = 15) -> list[float]:
    half = window // 2
    parts = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]
