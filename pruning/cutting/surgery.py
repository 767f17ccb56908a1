"""Cutting channels and KV groups out of a model in memory: tensors, then counts, then the config, in lockstep."""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.decoder_layer import DecoderLayer, DecoderSizes, TensorSpec, Unit
from pruning.anatomy.decoder_view import DecoderView, decoder_view
from pruning.anatomy.layer_config import layer_overrides
from pruning.anatomy.tensor_roles import unit_axis
from pruning.checkpoints.anatomy_reader import anatomy_of
from pruning.checkpoints.resizing import replace_parameters, set_counts
from pruning.errors import FingerprintMismatchError, PlanError
from pruning.forward.compensation import compensated_bias
from pruning.planning.plan import BIAS, PruningPlan
from pruning.planning.ranking import Ranking

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_UPGRADE = "Upgrade lop-service, or fetch the plan again with `lop plan`"


@torch.no_grad()
def cut_model(model: "PreTrainedModel", sizes: DecoderSizes, ranking: Ranking) -> None:
    """Cut every layer of `model`, in place, down to the best channels and groups of `sizes`; the config records them.

    If the ranking holds means, the down projections that are cut get a bias for what they lose.

    Raises:
        FingerprintMismatchError: the ranking is of another model.
        PlanError: a size is outside 1..dense, or the ranking orders no groups.
        CheckpointError: a bias does not fit the weights' dtype. In every case nothing is cut.
    """
    anatomy = anatomy_of(model)
    ranking.check(anatomy)
    ranking.check_sizes(sizes, anatomy)
    view = decoder_view(model)
    biases = _compensated_biases(view, anatomy, sizes, ranking) if ranking.compensates else {}
    for index, dense in enumerate(anatomy.layers):
        width, groups = sizes.ffn_widths[index], sizes.kv_groups[index]
        units = {unit: torch.from_numpy(kept) for unit, kept in ranking.kept_units(index, sizes).items()}
        if width < dense.ffn_width:
            out = view.out_projection(index)
            bias = biases.get(index, out.bias)
            _cut_rows(view, dense, view.family.ffn_in, units)
            replace_parameters(out, out.weight[:, units[Unit.FFN_CHANNEL].to(out.weight.device)], bias)
            logger.info("layer %d: ffn %d -> %d channels", index, dense.ffn_width, width)
        if groups < dense.num_kv_groups:
            _cut_rows(view, dense, view.family.attention_in, units)
            _cut_columns(view, dense, view.family.attention_out, units)
            logger.info("layer %d: %d -> %d KV groups", index, dense.num_kv_groups, groups)
        set_counts(view, index, width, groups, dense.heads_per_group)
    record_sizes(model, sizes, anatomy)


def _compensated_biases(
    view: DecoderView, anatomy: ModelAnatomy, sizes: DecoderSizes, ranking: Ranking
) -> dict[int, torch.Tensor]:
    """The bias [D] of the down projection of each layer that loses channels."""
    found = {}
    for layer, width in zip(anatomy.layers, sizes.ffn_widths, strict=True):
        if width < layer.ffn_width:
            out = view.out_projection(layer.index)
            found[layer.index] = compensated_bias(out.weight, out.bias, ranking, layer.index, width)
    return found


def _cut_rows(view: DecoderView, dense: DecoderLayer, names: Sequence[str], units: Mapping[Unit, torch.Tensor]) -> None:
    for name in names:
        linear = view.projection(dense.index, name)
        kept = _kept(f"{name}.weight", view, dense, units).to(linear.weight.device)
        replace_parameters(linear, linear.weight[kept], None if linear.bias is None else linear.bias[kept])


def _cut_columns(view: DecoderView, dense: DecoderLayer, name: str, units: Mapping[Unit, torch.Tensor]) -> None:
    linear = view.projection(dense.index, name)
    kept = _kept(f"{name}.weight", view, dense, units).to(linear.weight.device)
    replace_parameters(linear, linear.weight[:, kept], linear.bias)


def _kept(name: str, view: DecoderView, dense: DecoderLayer, units: Mapping[Unit, torch.Tensor]) -> torch.Tensor:
    """Indices that stay of the rows or columns of the layer's tensor `name`."""
    found = unit_axis(name, dense, view.family)
    assert found is not None
    spec = TensorSpec(name, (), "", dense.index, *found)
    return torch.from_numpy(spec.kept_indices({unit: kept.numpy() for unit, kept in units.items()}))


def apply_plan(model: "PreTrainedModel", plan: PruningPlan, ranking: Ranking) -> "PreTrainedModel":
    """Apply `plan` to `model` in place, keeping the channels that `ranking` puts first; returns the model.

    Raises:
        FingerprintMismatchError: plan, ranking and model do not belong together.
        PlanError: the plan asks for what cannot be cut.
    """
    anatomy = anatomy_of(model)
    check_applicable(plan, anatomy, ranking)
    cut_model(model, plan.sizes(anatomy), ranking)
    return model


def check_applicable(plan: PruningPlan, anatomy: ModelAnatomy, ranking: Ranking) -> None:
    """Check, before anything is cut, that plan, ranking and model belong together and that every axis can be applied.

    Raises:
        FingerprintMismatchError: they do not belong together.
        PlanError: the plan uses an axis that this version cannot apply, or a width that the model does not have.
    """
    plan.check_fingerprint(anatomy.fingerprint)
    if ranking.sha256 != plan.ranking.sha256:
        raise FingerprintMismatchError(
            "a plan must be applied with the ranking that it names",
            values=f"plan names {plan.ranking.sha256[:12]}, got {ranking.sha256[:12]}",
            remedy="Fetch the ranking from the plan's ranking.url",
        )
    ranking.check(anatomy)
    if any(step != BIAS for step in plan.recovery):
        raise PlanError(
            "this version recovers by biases only",
            values=f"recovery: {', '.join(step.kind for step in plan.recovery)}",
            remedy=_UPGRADE,
        )
    if ranking.compensates != plan.compensates:
        raise PlanError(
            "a plan compensates if, and only if, its ranking holds channel means",
            values=f"plan {plan.compensates}, ranking {ranking.compensates}",
            remedy="Fetch the plan again with `lop plan`",
        )
    sizes = plan.sizes(anatomy)
    for index, kept in enumerate(zip(sizes.ffn_widths, sizes.kv_groups, strict=True)):
        if 0 in kept:
            raise PlanError(
                "this version skips no sub-layers: each layer keeps FFN channels and KV groups",
                values=f"layer {index}: {kept[0]} channels, {kept[1]} KV groups",
                remedy=_UPGRADE,
            )
    ranking.check_sizes(sizes, anatomy)


def record_sizes(model: "PreTrainedModel", sizes: DecoderSizes, anatomy: ModelAnatomy) -> None:
    """Write what differs from dense into the text config's `per_layer_config`, transformers' own format."""
    text = model.config.get_text_config(decoder=True)
    overrides = layer_overrides(sizes, anatomy, decoder_view(model).family)
    if not overrides:
        return
    # Without this, transformers refuses to read the global width of a heterogeneous config, which its own
    # model code does on every build.
    text.allow_global_per_layer_attribute_access = True
    text.head_dim = anatomy.layers[0].head_dim
    text.per_layer_config = overrides
