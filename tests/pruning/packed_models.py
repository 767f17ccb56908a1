"""A small checkpoint whose weights come in whole groups, plans with bits for it, and the model that they make of it."""

from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.anatomy.decoder_view import decoder_view
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.loading import load_model, load_processor
from pruning.cutting.prune_checkpoint import prune_checkpoint
from pruning.cutting.rewriting.quantisation import IntFormat, round_to_nearest
from pruning.cutting.surgery import cut_model
from pruning.planning.make_plan import make_plan
from pruning.planning.plan import PlanRanking, PlanTarget, PruningPlan
from pruning.planning.ranking import Ranking
from tests.pruning.cut_models import random_ranking
from tests.tiny_models import save_tiny_checkpoint

ATTENTION, FFN = Sublayer.ATTENTION, Sublayer.FFN

BITS = Architecture.of(
    {
        Site(0, ATTENTION): Option(2, 8),
        Site(0, FFN): Option(64, 4),
        Site(2, FFN): Option(64, 8),
        Site(3, FFN): Option(64, 4),
    }
)

JOINT = Architecture.of(
    {
        Site(0, ATTENTION): Option(2, 4),
        Site(0, FFN): Option(32, 8),
        Site(1, ATTENTION): Option(1),
        Site(2, ATTENTION): Option(0),
        Site(2, FFN): Option(32, 4),
        Site(3, FFN): Option(48),
    }
)

UNEVEN = Architecture.of(
    {
        Site(0, FFN): Option(32),
        Site(1, ATTENTION): Option(1),
        Site(1, FFN): Option(0),
        Site(2, ATTENTION): Option(0),
        Site(2, FFN): Option(0),
        Site(3, FFN): Option(40),
    }
)
"""Of units alone: of one layer nothing is left, and two projections have inputs that 32 does not divide, 16 and 40."""


def save_cut_checkpoint(folder: Path, dense: Path, *, compensates: bool = False) -> Path:
    """`dense` cut to UNEVEN, with plan and card; its base model is called lab/tiny. Down projections that are cut have
    a bias if it `compensates`."""
    anatomy = read_anatomy(dense)
    plan, ranking = plan_of(dense, UNEVEN), random_ranking(anatomy)
    if compensates:
        means = [np.full(layer.ffn_width, 0.1) for layer in anatomy.layers]
        groups = [np.arange(layer.num_kv_groups, dtype=np.float64) for layer in anatomy.layers]
        ranking = Ranking.from_scores(anatomy, means, group_scores=groups, means=means)
        plan = make_plan(
            anatomy,
            UNEVEN,
            model_id="tiny",
            target=PlanTarget(sparsity=0.0),
            method="test",
            ranking=PlanRanking(sha256=ranking.sha256),
            compensates=True,
        )
    return prune_checkpoint(dense, plan, ranking, folder, base_model="lab/tiny")


def save_wide_checkpoint(folder: Path, family: str = "llava-llama", dtype: torch.dtype = torch.bfloat16) -> Path:
    """FFNs of 64 channels, attention of 32 inputs in 2 KV groups. Layers do much more than pass on what they get, so
    that no difference hides behind the residual."""
    model = load_model(save_tiny_checkpoint(folder / "plain", family, ffn_width=64), dtype=dtype)
    for module in [*decoder_view(model).layers, model.get_output_embeddings()]:
        for linear in module.modules():
            if isinstance(linear, torch.nn.Linear):
                torch.nn.init.normal_(linear.weight, std=0.2)
    model.save_pretrained(folder / "m")
    load_processor(folder / "plain").save_pretrained(folder / "m")
    return folder / "m"


def plan_of(folder: Path, architecture: Architecture) -> PruningPlan:
    anatomy = read_anatomy(folder)
    ranking = PlanRanking(sha256=random_ranking(anatomy).sha256)
    return make_plan(
        anatomy, architecture, model_id="tiny", target=PlanTarget(sparsity=0.0), method="test", ranking=ranking
    )


def cut_and_rounded(folder: Path, architecture: Architecture) -> PreTrainedModel:
    """In memory, in bfloat16: cut, then each weight rounded as it stands."""
    model, anatomy = load_model(folder), read_anatomy(folder)
    cut_model(model, anatomy.sizes(architecture), random_ranking(anatomy))
    return rounded(model, architecture)


@torch.no_grad()
def rounded(model: PreTrainedModel, architecture: Architecture) -> PreTrainedModel:
    """`model`, which is cut, with each weight rounded as it stands."""
    view = decoder_view(model)
    for (layer, sublayer), option in architecture.items:
        if option.bits is not None:
            for name in view.family.linears(sublayer):
                weight = view.projection(layer, name).weight
                weight.copy_(round_to_nearest(weight, IntFormat(option.bits, 32), None, weight.dtype).weight)
    return model
