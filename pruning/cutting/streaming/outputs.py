"""What the tensors of the pruned checkpoint are made of: a cut of a stored one each, packed where it is in fewer bits,
or a bias that compensates."""

from collections.abc import Mapping
from dataclasses import replace

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture
from pruning.anatomy.packed_weights import is_packed, packed_headers
from pruning.checkpoints.headers import StoredTensor
from pruning.cutting.streaming.bias import CompensatedBias
from pruning.cutting.streaming.cuts import TensorCut
from pruning.cutting.streaming.packed import PackedTensor, packed_tensors
from pruning.planning.added_biases import compensated_weights, pruned_tensors
from pruning.planning.plan import PruningPlan
from pruning.planning.ranking import Ranking

OutputTensor = TensorCut | CompensatedBias | PackedTensor


def output_tensors(
    anatomy: ModelAnatomy, plan: PruningPlan, ranking: Ranking, stored: Mapping[str, StoredTensor]
) -> dict[str, OutputTensor]:
    """Every tensor of the pruned checkpoint by name, in the order of names. Plan and ranking fit the anatomy."""
    planned = plan.architecture(anatomy)
    architecture = anatomy.sizes(planned)
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
    return outputs if planned == architecture else _packed(outputs, planned, anatomy)


def _packed(
    outputs: Mapping[str, OutputTensor], planned: Architecture, anatomy: ModelAnatomy
) -> dict[str, OutputTensor]:
    """`outputs`, in which the weights that `planned` has in fewer bits are packed; in the order of names."""
    options, dense = planned.options, {t.name: t for t in anatomy.tensors}
    found: dict[str, OutputTensor] = {}
    for name, output in outputs.items():
        spec = dense.get(name)
        option = None if spec is None or spec.site is None else options.get(spec.site)
        if spec is None or option is None or option.bits is None or not is_packed(spec):
            found[name] = output
            continue
        assert isinstance(output, TensorCut)
        (outs, inputs), dtype = output.header[1], output.header[2]
        found |= packed_tensors(output, packed_headers(name, (outs, inputs), dtype, option.bits), option.bits)
    return dict(sorted(found.items()))


def with_solved(outputs: Mapping[str, OutputTensor], solved: Mapping[str, StoredTensor]) -> dict[str, OutputTensor]:
    """`outputs` with the weights `solved`, by name, in the place of cut ones; packed ones are made of them."""
    found: dict[str, OutputTensor] = {}
    for name, output in outputs.items():
        if isinstance(output, PackedTensor) and (own := solved.get(output.weight.header[0])) is not None:
            found[name] = replace(output, weight=TensorCut(output.weight.header, own))
        elif name in solved:
            found[name] = TensorCut(output.header, solved[name])
        else:
            found[name] = output
    return found


def is_cut_of_inputs(tensor: OutputTensor) -> bool:
    """Whether it is a weight of which inputs are cut: what a reconstruction solves anew."""
    weight = tensor.weight if isinstance(tensor, PackedTensor) else tensor
    return isinstance(weight, TensorCut) and weight.axis == 1
