"""Cutting channels, KV groups and whole sub-layers out of a model in memory: tensors, then counts, then the config,
in lockstep."""

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Site, Sublayer
from pruning.anatomy.decoder_layer import DecoderLayer
from pruning.anatomy.decoder_view import DecoderView, decoder_view
from pruning.anatomy.layer_config import layer_overrides
from pruning.arrays import IntArray
from pruning.checkpoints.anatomy_reader import anatomy_of
from pruning.checkpoints.resizing import replace_parameters, set_layer_counts, weights_of
from pruning.errors import FingerprintMismatchError, PlanError
from pruning.forward.compensation import compensated_bias
from pruning.planning.plan import PruningPlan
from pruning.planning.ranking import Ranking

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

Replaced = Mapping[str, torch.Tensor]
"""Tensors of a layer by their names in it, at the sizes that it keeps: what is put in instead of being sliced."""


@torch.no_grad()
def cut_model(
    model: "PreTrainedModel",
    architecture: Architecture,
    ranking: Ranking,
    *,
    solved: Mapping[int, Replaced] = MappingProxyType({}),
) -> None:
    """Cut `model`, in place, down to the best channels and groups of `architecture`; the config records how many.

    If the ranking holds means, the down projections that are cut get a bias for what they lose. Of a sub-layer that is
    skipped nothing is left, nor is there a bias for it. `solved`: of layers, what stands in for weights that would be
    sliced (`pruning.cutting.reconstruction`).

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
    replaced = {
        layer.index: solved[layer.index] if layer.index in solved else added_biases(view, layer, kept_units, ranking)
        for layer in anatomy.layers
    }
    for layer in anatomy.layers:
        cut_layer(view, layer, architecture, kept_units, replaced[layer.index])
    for site, option in architecture.items:
        logger.info(
            "layer %d: %s %d -> %d",
            site.layer,
            site.sublayer,
            anatomy.layers[site.layer].units(site.sublayer),
            option.units,
        )
    _record(model, architecture, anatomy)


def cut_layer(
    view: DecoderView,
    dense: DecoderLayer,
    architecture: Architecture,
    kept_units: Mapping[Site, IntArray],
    replaced: Replaced,
) -> None:
    """Cut one layer of `view`, in place, down to `kept_units` (`Ranking.kept_units`) and what `architecture` skips.

    What is in `replaced` is put in; of all other tensors what is kept is sliced out.
    """
    options = architecture.options
    kept = {}
    for sublayer in Sublayer:
        site = Site(dense.index, sublayer)
        kept[sublayer] = options[site].units if site in options else dense.units(sublayer)
        if site in kept_units:
            for linear, spec in weights_of(view, dense, sublayer):
                indices = torch.from_numpy(spec.kept_indices(kept_units[site])).to(linear.weight.device)
                weight = _put(replaced, f"{spec.name}.weight", linear.weight)
                bias = _put(replaced, f"{spec.name}.bias", linear.weight)
                if weight is None:
                    weight = linear.weight.index_select(spec.axis or 0, indices)
                if bias is None and linear.bias is not None:
                    bias = linear.bias[indices] if spec.axis == 0 else linear.bias
                replace_parameters(linear, weight, bias)
        elif kept[sublayer] == 0:
            view.skip(site)
    set_layer_counts(view, dense, kept[Sublayer.FFN], kept[Sublayer.ATTENTION])


def _put(replaced: Replaced, name: str, like: torch.Tensor) -> torch.Tensor | None:
    tensor = replaced.get(name)
    return None if tensor is None else tensor.to(like.device, like.dtype)


def added_biases(
    view: DecoderView, layer: DecoderLayer, kept_units: Mapping[Site, IntArray], ranking: Ranking
) -> dict[str, torch.Tensor]:
    """The bias [D] of the down projection of a layer whose FFN loses channels, if the ranking compensates."""
    site = Site(layer.index, Sublayer.FFN)
    if not ranking.compensates or site not in kept_units:
        return {}
    out = view.out_projection(layer.index)
    bias = compensated_bias(out.weight, out.bias, ranking, layer.index, len(kept_units[site]))
    return {f"{view.family.ffn_out}.bias": bias}


def apply_plan(model: "PreTrainedModel", plan: PruningPlan, ranking: Ranking) -> "PreTrainedModel":
    """Apply `plan` to `model` in place, keeping the channels that `ranking` puts first; returns the model.

    Raises:
        FingerprintMismatchError: plan, ranking and model do not belong together.
        PlanError: the plan asks for what cannot be cut.
    """
    anatomy = anatomy_of(model)
    check_applicable(plan, anatomy, ranking)
    if note := note_of_training(plan):
        logger.warning(note)
    cut_model(model, plan.architecture(anatomy), ranking)
    return model


def note_of_training(plan: PruningPlan) -> str | None:
    """What to tell who only cuts a model by a plan that counts on a training; None of any other plan."""
    if not plan.distils:
        return None
    return (
        f"plan {plan.plan_id} counts on a training after cutting: what it expects is of the trained model, and what is "
        "cut alone is worse. `lop apply --recover DATA` cuts and trains, `lop recover` trains what was cut"
    )


def check_applicable(
    plan: PruningPlan,
    anatomy: ModelAnatomy,
    ranking: Ranking,
    *,
    reconstructs: bool = False,
    packs: bool = False,
    rounds: bool = False,
) -> None:
    """Check, before anything is cut, that plan, ranking and model belong together and that every axis can be applied.

    `reconstructs`: what is kept will be solved anew, which a plan may count on. `packs`: weights can be in fewer bits,
    which they are in files only. `rounds`: those will be rounded by GPTQ, which a plan may count on. A training that a
    plan counts on comes after cutting: see `note_of_training`.

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
    packed = [site for site, option in plan.architecture(anatomy).items if option.bits is not None]
    if packed and not packs:
        raise PlanError(
            "weights in fewer bits are written to files, and not made in memory",
            values=f"plan {plan.plan_id}: layer {packed[0].layer}, {packed[0].sublayer.value}",
            remedy="Use `lop apply`, and load its folder",
        )
    if plan.reconstructs and not reconstructs:
        raise PlanError(
            "a plan that counts on reconstruction is applied with calibration data",
            values=f"plan {plan.plan_id}",
            remedy="Give the data: `lop apply --reconstruct FILE --method gptq`"
            if plan.rounds
            else "Give the data: `lop apply --reconstruct FILE`, apply_plan(..., reconstruct=FILE)",
        )
    if plan.rounds and not rounds:
        raise PlanError(
            "a plan that counts on GPTQ is applied with calibration data",
            values=f"plan {plan.plan_id}",
            remedy="Give the data: `lop apply --method gptq "
            + ("--reconstruct FILE`, which are the same" if plan.reconstructs else "--data FILE`"),
        )
    if rounds and not packed:
        raise PlanError(
            "GPTQ rounds weights in fewer bits, of which the plan must have some",
            values=f"plan {plan.plan_id} has none",
            remedy="Leave --method and --data out, or plan with `--space bits` or `all,bits`",
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
