"""Cutting channels, KV groups and whole sub-layers out of a model in memory: tensors, then counts, then the config,
in lockstep."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Site, Sublayer
from pruning.anatomy.decoder_view import DecoderView, decoder_view
from pruning.anatomy.layer_config import layer_overrides
from pruning.arrays import IntArray
from pruning.checkpoints.anatomy_reader import anatomy_of
from pruning.checkpoints.resizing import replace_parameters, set_counts, weights_of
from pruning.errors import FingerprintMismatchError, PlanError
from pruning.forward.compensation import compensated_bias
from pruning.planning.plan import BIAS, PruningPlan
from pruning.planning.plan_parts import UPGRADE
from pruning.planning.ranking import Ranking

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


@torch.no_grad()
def cut_model(model: "PreTrainedModel", architecture: Architecture, ranking: Ranking) -> None:
    """Cut `model`, in place, down to the best channels and groups of `architecture`; the config records how many.

    If the ranking holds means, the down projections that are cut get a bias for what they lose. Of a sub-layer that is
    skipped nothing is left, nor is there a bias for it.

    Raises:
        FingerprintMismatchError: the ranking is of another model.
        PlanError: what is kept is outside 0..dense, of other bits or density, or of groups that the ranking does not
            order; or no layer keeps attention.
        CheckpointError: a bias does not fit the weights' dtype. In every case nothing is cut.
    """
    anatomy = anatomy_of(model)
    ranking.check(anatomy)
    ranking.check_architecture(architecture, anatomy)
    view = decoder_view(model)
    kept_units = ranking.kept_units(architecture)
    biases = _compensated_biases(view, kept_units, ranking) if ranking.compensates else {}
    for site, units in kept_units.items():
        dense = anatomy.layers[site.layer]
        for linear, spec in weights_of(view, dense, site.sublayer):
            weight, bias = linear.weight, linear.bias
            kept = torch.from_numpy(spec.kept_indices(units)).to(weight.device)
            if spec.axis == 0:
                replace_parameters(linear, weight[kept], None if bias is None else bias[kept])
            else:
                replace_parameters(linear, weight[:, kept], biases.get(site, bias))
        logger.info("layer %d: %s %d -> %d", site.layer, site.sublayer, dense.units(site.sublayer), len(units))
    for site, option in architecture.items:
        if option.units == 0:
            view.skip(site)
            logger.info(
                "layer %d: %s %d -> 0", site.layer, site.sublayer, anatomy.layers[site.layer].units(site.sublayer)
            )
    set_counts(view, anatomy.layers, architecture)
    _record(model, architecture, anatomy)


def _compensated_biases(
    view: DecoderView, kept_units: Mapping[Site, IntArray], ranking: Ranking
) -> dict[Site, torch.Tensor]:
    """The bias [D] of the down projection of each FFN that loses channels."""
    found = {}
    for site, units in kept_units.items():
        if site.sublayer is Sublayer.FFN:
            out = view.out_projection(site.layer)
            found[site] = compensated_bias(out.weight, out.bias, ranking, site.layer, len(units))
    return found


def apply_plan(model: "PreTrainedModel", plan: PruningPlan, ranking: Ranking) -> "PreTrainedModel":
    """Apply `plan` to `model` in place, keeping the channels that `ranking` puts first; returns the model.

    Raises:
        FingerprintMismatchError: plan, ranking and model do not belong together.
        PlanError: the plan asks for what cannot be cut.
    """
    anatomy = anatomy_of(model)
    check_applicable(plan, anatomy, ranking)
    cut_model(model, plan.architecture(anatomy), ranking)
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
            remedy=UPGRADE,
        )
    if ranking.compensates != plan.compensates:
        raise PlanError(
            "a plan compensates if, and only if, its ranking holds channel means",
            values=f"plan {plan.compensates}, ranking {ranking.compensates}",
            remedy="Fetch the plan again with `lop plan`",
        )
    ranking.check_architecture(plan.architecture(anatomy), anatomy)


def _record(model: "PreTrainedModel", architecture: Architecture, anatomy: ModelAnatomy) -> None:
    """Write what differs from dense into the text config's `per_layer_config`, transformers' own format."""
    text = model.config.get_text_config(decoder=True)
    overrides = layer_overrides(architecture, anatomy, decoder_view(model).family)
    if not overrides:
        return
    # Without this, transformers refuses to read the global width of a heterogeneous config, which its own
    # model code does on every build.
    text.allow_global_per_layer_attribute_access = True
    text.head_dim = anatomy.layers[0].head_dim
    text.per_layer_config = overrides
