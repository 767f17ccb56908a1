"""Cutting FFN channels out of a model in memory: coupled tensors, then counts, then the config, in lockstep."""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from pruning.anatomy import ModelAnatomy
from pruning.anatomy_reader import anatomy_of
from pruning.compensation import compensated_bias
from pruning.decoder import DecoderView, decoder_view
from pruning.errors import FingerprintMismatchError, PlanError
from pruning.plan import PruningPlan
from pruning.ranking import Ranking

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


@torch.no_grad()
def cut_ffns(model: "PreTrainedModel", widths: Sequence[int], ranking: Ranking) -> None:
    """Cut every FFN of `model`, in place, down to its `widths[l]` best channels and record them in the config.

    If the ranking holds means, the down projections that are cut get a bias for what they lose.

    Raises:
        FingerprintMismatchError: the ranking is of another model.
        PlanError: a width is outside 1..dense width; nothing is cut then.
    """
    anatomy = anatomy_of(model)
    ranking.check(anatomy)
    _check_widths(widths, anatomy)
    dense = [x.ffn_width for x in anatomy.layers]
    view = decoder_view(model)
    for layer, width in enumerate(widths):
        if width == dense[layer]:
            continue
        kept = torch.from_numpy(ranking.kept(layer, width)).to(model.device)
        for linear in view.in_projections(layer):
            _replace(linear, linear.weight[kept], linear.bias[kept] if linear.bias is not None else None)
        out = view.out_projection(layer)
        bias = compensated_bias(out.weight, out.bias, ranking, layer, width) if ranking.compensates else out.bias
        _replace(out, out.weight[:, kept], bias)
        _set_width(view, layer, width)
        logger.info("layer %d: ffn %d -> %d channels", layer, dense[layer], width)
    record_widths(model, {i: w for i, (w, d) in enumerate(zip(widths, dense, strict=True)) if w != d})


def apply_plan(model: "PreTrainedModel", plan: PruningPlan, ranking: Ranking) -> "PreTrainedModel":
    """Apply `plan` to `model` in place, keeping the channels that `ranking` puts first; returns the model.

    Raises:
        FingerprintMismatchError: plan, ranking and model do not belong together.
        PlanError: the plan asks for what cannot be cut.
    """
    check_applicable(plan, anatomy_of(model), ranking)
    cut_ffns(model, plan.ffn_widths, ranking)
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
    if ranking.compensates != plan.ranking.compensates:
        raise PlanError(
            "a plan compensates if, and only if, its ranking holds channel means",
            values=f"plan {plan.ranking.compensates}, ranking {ranking.compensates}",
            remedy="Fetch the plan again with `lop plan`",
        )
    _check_widths(plan.ffn_widths, anatomy)
    for layer, dense in zip(plan.layers, anatomy.layers, strict=True):
        heads_cut = (layer.num_heads, layer.num_kv_groups) != (dense.num_heads, dense.num_kv_groups)
        if layer.skip or layer.weight_bits is not None or heads_cut:
            raise PlanError(
                "this version applies FFN widths only",
                values=f"layer {layer.index}: {layer.model_dump(exclude={'index', 'ffn_width'})}",
                remedy="Upgrade lop-service",
            )


def _check_widths(widths: Sequence[int], anatomy: ModelAnatomy) -> None:
    dense = [x.ffn_width for x in anatomy.layers]
    if len(widths) != len(dense) or any(not 1 <= w <= d for w, d in zip(widths, dense, strict=False)):
        raise PlanError("each layer keeps between 1 channel and all", values=f"widths {list(widths)} of {dense}")


def resize_ffns(model: "PreTrainedModel", widths: Mapping[int, int], *, compensated: Collection[int] = ()) -> None:
    """Give the listed layers FFNs of these widths, with new, uninitialised weights on the same device.

    The down projections of the layers in `compensated` get a bias [D] if they have none.
    """
    view = decoder_view(model)
    for layer, width in widths.items():
        for linear in view.in_projections(layer):
            bias = None if linear.bias is None else linear.bias.new_empty(width)
            _replace(linear, linear.weight.new_empty(width, linear.in_features), bias)
        out = view.out_projection(layer)
        added = out.weight.new_empty(out.out_features) if layer in compensated else None
        _replace(out, out.weight.new_empty(out.out_features, width), out.bias if added is None else added)
        _set_width(view, layer, width)


def record_widths(model: "PreTrainedModel", widths: Mapping[int, int]) -> None:
    """Write the widths that differ from dense into the text config's `per_layer_config`, transformers' own format."""
    if not widths:
        return
    text = model.config.get_text_config(decoder=True)
    attribute = decoder_view(model).family.width_attribute
    # Without this, transformers refuses to read the global width of a heterogeneous config, which its own
    # model code does on every build.
    text.allow_global_per_layer_attribute_access = True
    text.per_layer_config = {layer: {attribute: width} for layer, width in widths.items()}


def _set_width(view: DecoderView, layer: int, width: int) -> None:
    if hasattr(view.ffns[layer], view.family.width_attribute):
        setattr(view.ffns[layer], view.family.width_attribute, width)


def _replace(linear: nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    requires_grad = linear.weight.requires_grad
    linear.weight = nn.Parameter(weight.detach().clone(), requires_grad=requires_grad)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone(), requires_grad=requires_grad)
    linear.out_features, linear.in_features = weight.shape
