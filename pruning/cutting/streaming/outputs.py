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
    architecture = plan.architecture(anatomy)
    kept = ranking.kept_units(architecture)
    weights = compensated_weights(anatomy) if ranking.compensates else {}
    outputs: dict[str, OutputTensor] = {}
    for spec in pruned_tensors(anatomy, architecture, compensates=ranking.compensates):
        header = (spec.name, spec.shape, spec.dtype)
        site, weight = spec.site, weights.get(spec.name)
        if site is None or site not in kept or (spec.axis is None and weight is None):
            outputs[spec.name] = TensorCut(header, stored[spec.name])
        elif weight is None:
            outputs[spec.name] = TensorCut(header, stored[spec.name], spec.axis, spec.kept_indices(kept[site]))
        else:
            own, width = stored.get(spec.name), len(kept[site])
            outputs[spec.name] = CompensatedBias(header, stored[weight.name], own, ranking, site.layer, width)
    return outputs


def is_cut_of_inputs(tensor: OutputTensor) -> bool:
    """Whether it is a weight of which inputs are cut: what a reconstruction solves anew."""
    return isinstance(tensor, TensorCut) and tensor.axis == 1
