"""What each layer of a checkpoint keeps, drawn. Needs matplotlib: the extra `plots`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from lop.console.pictures import require_pyplot, save_figure


class DrawnLayer(Protocol):
    """What is drawn of a layer."""

    @property
    def index(self) -> int: ...

    @property
    def ffn_width(self) -> int: ...

    @property
    def dense_ffn_width(self) -> int: ...

    @property
    def kv_groups(self) -> int: ...

    @property
    def dense_kv_groups(self) -> int: ...


def draw_layers(layers: Sequence[DrawnLayer], path: Path) -> None:
    """A bar a layer for its FFN channels, and one for its KV groups, in front of what the dense model has.

    Raises MissingExtraError without matplotlib, InputError if the file cannot be written.
    """
    pyplot = require_pyplot()
    figure, axes = pyplot.subplots(2, 1, figsize=(2.5 + 0.16 * len(layers), 4.6), sharex=True, layout="constrained")
    numbers = [layer.index for layer in layers]
    for axis, label, kept, dense in (
        (axes[0], "FFN channels", [x.ffn_width for x in layers], [x.dense_ffn_width for x in layers]),
        (axes[1], "KV groups", [x.kv_groups for x in layers], [x.dense_kv_groups for x in layers]),
    ):
        axis.bar(numbers, dense, color="#d9dee3", label="dense")
        axis.bar(numbers, kept, color="#2f6f9f", label="kept")
        axis.set_ylabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].set_xlabel("layer")
    axes[0].legend(frameon=False, fontsize=9, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    save_figure(figure, path)
    pyplot.close(figure)
