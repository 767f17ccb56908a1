"""What a table shows of a configuration: of what a search could change, what every layer keeps."""

from collections.abc import Sequence

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Sublayer
from pruning.planning.axis_spaces import SpaceName


def kept_columns(axes: SpaceName, anatomy: ModelAnatomy, architecture: Architecture) -> dict[str, str]:
    """What every layer keeps, of what the search could change, by the columns' names."""
    columns: dict[str, Sequence[object]] = {}
    sublayers = {"FFN": Sublayer.FFN, "attention": Sublayer.ATTENTION}
    if axes.has_density:
        for name, sublayer in sublayers.items():
            columns[f"{name} densities"] = architecture.densities(sublayer, anatomy.num_layers)
    if axes.has_units and axes is not SpaceName.ATTENTION:
        columns["FFN widths"] = architecture.units(Sublayer.FFN, anatomy.dense_units(Sublayer.FFN))
    if axes.has_units and axes is not SpaceName.FFN:
        columns["KV groups"] = architecture.units(Sublayer.ATTENTION, anatomy.dense_units(Sublayer.ATTENTION))
    if axes.has_bits:
        for name, sublayer in sublayers.items():
            own = architecture.bits(sublayer, anatomy.num_layers)
            columns[f"{name} bits (-: as they are)"] = ["-" if bits is None else bits for bits in own]
    return {name: " ".join(f"{x:g}" if isinstance(x, float) else str(x) for x in own) for name, own in columns.items()}
