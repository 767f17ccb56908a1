"""What the tensors of the pruned checkpoint are made of: a cut of a stored one each, or a bias that compensates."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.tensor_roles import TensorHeader
from pruning.arrays import IntArray
from pruning.checkpoints.blocks import BLOCK_BYTES, Bytes, cut_blocks, whole_blocks
from pruning.checkpoints.headers import StoredTensor
from pruning.cutting.streaming.bias import CompensatedBias
from pruning.planning.added_biases import compensated_weights, pruned_tensors
from pruning.planning.plan import PruningPlan
from pruning.planning.ranking import Ranking


@dataclass(frozen=True, slots=True)
class TensorCut:
    """A stored tensor of which `kept`, ascending, stays along `axis`; all of it if `axis` is None."""

    header: TensorHeader
    source: StoredTensor
    axis: int | None = None
    kept: IntArray | None = None

    def blocks(self, block_bytes: int = BLOCK_BYTES) -> Iterator[Bytes]:
        """Its bytes, in order. Raises CheckpointError if the source cannot be read."""
        if self.axis is None or self.kept is None:
            return whole_blocks(self.source, block_bytes=block_bytes)
        return cut_blocks(self.source, self.axis, self.kept, block_bytes=block_bytes)


OutputTensor = TensorCut | CompensatedBias


def output_tensors(
    anatomy: ModelAnatomy, plan: PruningPlan, ranking: Ranking, stored: Mapping[str, StoredTensor]
) -> dict[str, OutputTensor]:
    """Every tensor of the pruned checkpoint by name, in the order of names. Plan and ranking fit the anatomy."""
    sizes = plan.sizes(anatomy)
    kept = [ranking.kept_units(layer.index, sizes) for layer in anatomy.layers]
    dense = {spec.name: spec for spec in anatomy.tensors}
    weights = compensated_weights(anatomy) if ranking.compensates else {}
    outputs: dict[str, OutputTensor] = {}
    for spec in pruned_tensors(anatomy, sizes, compensates=ranking.compensates):
        header = (spec.name, spec.shape, spec.dtype)
        weight = weights.get(spec.name)
        if weight is not None and weight.layer is not None:
            width = sizes.ffn_widths[weight.layer]
            if width < weight.shape[1]:
                own = stored.get(spec.name)
                outputs[spec.name] = CompensatedBias(header, stored[weight.name], own, ranking, weight.layer, width)
                continue
        source = stored[spec.name]
        if spec.layer is None or spec.shape == source.shape:
            outputs[spec.name] = TensorCut(header, source)
        else:
            outputs[spec.name] = TensorCut(header, source, spec.axis, dense[spec.name].kept_indices(kept[spec.layer]))
    return outputs
