"""The cut models that are recovered: by each paradigm at each share of the reference's decoder, with their data.

- `layerwise`: whole layers by block influence (ShortGPT), as the study cuts; as many as the ratio has room for. Of
  twelve layers 1, 3, 5 and 7 go, 8, 25, 42 and 58%, where the others lose 15, 30, 45 and 60%. So it always has the
  easier cut, and comparing cannot flatter `ours`; shares that were really removed stand in the summary;
- `widthwise`: the same share of every layer's FFN channels, in the order of LLM-Pruner's first-order importance, and of
  its KV groups, in the order of the registered ranking (LLM-Pruner scores heads in the same backward pass; here it
  scores channels alone). Groups are rounded, channels then make up the ratio;
- `ours`: what `lop search --space all` finds on the calibration conversations.
"""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.steps import Steps
from benchmarks.subject import REFERENCE
from lop.workflows.measuring import measure_activations
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.decoder_view import decoder_view
from pruning.atomic_file import replace_file
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.loading import load_model, load_processor, load_pruned
from pruning.cutting.prune_checkpoint import prune_checkpoint, save_pruned
from pruning.data.batches import make_batches
from pruning.data.conversations import load_conversations
from pruning.measuring.gradient_statistics import measure_gradients
from pruning.measuring.importance import group_scores
from pruning.planning.cost import achieved_costs
from pruning.planning.make_plan import make_plan
from pruning.planning.plan import PlanRanking, PlanTarget, PruningPlan
from pruning.planning.ranking import Ranking
from pruning.planning.scope import Scope
from pruning.planning.workload import Workload
from reference.dataset import write_split

MODEL = REFERENCE / "model"
CALIBRATION = REFERENCE / "data" / "calibration.json"
VALIDATION = REFERENCE / "data" / "validation.json"
RATIOS = (0.15, 0.3, 0.45, 0.6)
PARADIGMS = ("layerwise", "widthwise", "ours")
NUM_TRAINING = 2560
"""Conversations; 5% of them are as many as the calibration set has."""
DATABASE = "lop.db"
"""In a work folder."""
_TRAINING_SEED = 71
_TAYLOR_CONVERSATIONS = 10
"""As LLM-Pruner has them."""
_EVALUATIONS = 60
_OWN = ("benchmarks.recovery_models",)


def training_data(folder: Path, count: int) -> Path:
    """New conversations of the reference's world, none of which any part of the repository has."""
    path = folder / "calibration.json"
    # Pictures are not carried to another machine (`benchmarks.carried`).
    if not path.is_file() or not any(folder.rglob("*.png")):
        write_split(folder, "calibration", _TRAINING_SEED, count)
    return path


def registered(folder: Path, steps: Steps, calibration: Path) -> tuple[str, ...]:
    """Words of commands that name the database in `folder`, in which the reference is registered."""
    place = ("--database", f"sqlite:///{folder / DATABASE}")
    steps.lop("add reference", "model", "add", "reference", str(MODEL), "--data", str(calibration), *place)
    return place


def search_words(calibration: Path, ratios: Sequence[float], share: float) -> tuple[str, ...]:
    """Of the `lop search` for these ratios, with `share` of the evaluations."""
    evaluations = max(6, round(_EVALUATIONS * share))
    asked = [word for ratio in ratios for word in ("-s", str(ratio))]
    words = ("search", "--model", "reference", "--data", str(calibration), "--space", "all", *asked)
    return (*words, "--evaluations", str(evaluations))


def ratio_models(folder: Path, steps: Steps, calibration: Path, share: float = 1.0) -> dict[tuple[str, float], Path]:
    """The pruned checkpoints by paradigm and ratio, made if they are not there; `share` of the evaluations.

    All ratios at once, before any other search is stored: a later one for the same target would be planned from, too.
    """
    place = registered(folder, steps, calibration)
    steps.lop("search", *search_words(calibration, RATIOS, share), *place)
    found: dict[tuple[str, float], Path] = {}
    for ratio in RATIOS:
        for paradigm, asked, sparsity in (
            ("layerwise", ("shortgpt", "layers"), whole_layers(ratio)),
            ("ours", ("mcts", "all"), str(ratio)),
        ):
            out = folder / f"{paradigm}-{ratio}"
            plan = folder / f"{paradigm}-{ratio}.json"
            method, space = asked
            how = ("--method", method, "--space", space, "--sparsity", sparsity, "--scope", "decoder")
            steps.lop(f"plan {out.name}", "plan", "--model", "reference", *how, "--out", str(plan), *place, makes=plan)
            apply = ("apply", "--plan", str(plan), "--model", str(MODEL), "--out", str(out))
            steps.lop(f"apply {out.name}", *apply, makes=out)
            found[paradigm, ratio] = out
            solved = reconstructed(out)
            steps.lop(f"apply {solved.name}", *apply[:-1], str(solved), "--reconstruct", str(calibration), makes=solved)
        out = found["widthwise", ratio] = widthwise_model(folder, steps, ratio, calibration)
        cut = partial(cut_widthwise, ratio, calibration, reconstructed(out), True)
        steps.call(f"cut {reconstructed(out).name}", [str(ratio)], cut, modules=_OWN)
    return found


def reconstructed(pruned: Path) -> Path:
    """Where the same cut lies with what is left solved for."""
    return pruned.with_name(f"{pruned.name}-reconstructed")


def whole_layers(ratio: float) -> str:
    """The sparsity to ask for so that as many whole layers go as `ratio` has room for: of itself a target removes at
    least its share, and at 60% of twelve layers eight would go, 67%."""
    count = read_anatomy(MODEL).num_layers
    return f"{math.floor(ratio * count) / count - 1e-4:.4f}"


def widthwise_model(folder: Path, steps: Steps, ratio: float, calibration: Path) -> Path:
    """The checkpoint, made if it is not there."""
    out = folder / f"widthwise-{ratio}"
    cut = partial(cut_widthwise, ratio, calibration, out, False)
    steps.call(f"cut {out.name}", [str(ratio)], cut, modules=_OWN)
    return out


def cut_widthwise(ratio: float, calibration: Path, out: Path, solved: bool) -> dict[str, Any]:
    """Write the checkpoint anew; the share of the decoder that is gone."""
    from lop.workflows.reconstructing import reconstruction_on

    anatomy, ranking = read_anatomy(MODEL), _taylor_ranking(calibration)
    groups = [max(1, round(layer.num_kv_groups * (1 - ratio))) for layer in anatomy.layers]
    widths = max(
        [width] * anatomy.num_layers
        for width in range(1, anatomy.layers[0].ffn_width + 1)
        if _removed(anatomy, [width] * anatomy.num_layers, groups) >= ratio
    )
    target = PlanTarget(sparsity=ratio, scope=Scope.DECODER)
    plan = make_plan(
        anatomy,
        anatomy.architecture(widths, groups),
        model_id="reference",
        target=target,
        method="widthwise-taylor",
        ranking=PlanRanking(sha256=ranking.sha256),
    )
    if out.exists():
        shutil.rmtree(out)
    prune_checkpoint(
        MODEL,
        plan,
        ranking,
        out,
        reconstruction=reconstruction_on(MODEL, load_conversations(calibration)) if solved else None,
    )
    return {"removed": plan.achieved.removed[Scope.DECODER]}


@cache
def _taylor_ranking(calibration: Path) -> Ranking:
    """Channels by LLM-Pruner's first-order importance, KV groups as the registered ranking has them."""
    anatomy, conversations = read_anatomy(MODEL), load_conversations(calibration)
    batches = make_batches(conversations[:_TAYLOR_CONVERSATIONS], load_processor(MODEL))
    taylor = measure_gradients(load_model(MODEL), batches)
    return Ranking.from_scores(
        anatomy,
        [taylor[f"layers.{i}.ffn_taylor"] for i in range(anatomy.num_layers)],
        group_scores=group_scores(measure_activations(MODEL, conversations), anatomy),
    )


def _removed(anatomy: ModelAnatomy, widths: Sequence[int], groups: Sequence[int]) -> float:
    costs = achieved_costs(anatomy, anatomy.architecture(widths, groups), Workload())
    return costs.removed[Scope.DECODER]


def with_random_weights(pruned: Path, out: Path) -> dict[str, Any]:
    """Write `pruned` with decoder layers of random weights, drawn as a new model's: the control."""
    if out.exists():
        return {"parameters": 0}
    model = load_pruned(pruned)
    torch.manual_seed(0)
    count = 0
    with torch.no_grad():
        for layer in decoder_view(model).layers:
            for parameter in layer.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(std=0.02)
                    count += parameter.numel()
    save_pruned(model, PruningPlan.load(pruned / "lop_plan.json"), out, processor=load_processor(pruned))
    return {"parameters": count}


def with_wrong_answers(source: Path, out: Path) -> Path:
    """The conversations of `source`, each with the answers of another: useless data."""
    items = _items_of(source)
    wrong = []
    for index, item in enumerate(items):
        other = items[(index + 37) % len(items)]["conversations"]
        said = [
            {**m, "value": other[i % len(other)]["value"]} if m["from"] == "gpt" else m
            for i, m in enumerate(item["conversations"])
        ]
        wrong.append({**item, "conversations": said})
    replace_file(out, json.dumps(wrong).encode())
    return out


def first_of(source: Path, count: int, out: Path) -> Path:
    """The first `count` conversations of `source`."""
    replace_file(out, json.dumps(_items_of(source)[:count]).encode())
    return out


def _items_of(source: Path) -> list[Mapping[str, Any]]:
    """The conversations of a file, their pictures where they are seen from anywhere."""
    items: list[dict[str, Any]] = json.loads(source.read_text())
    return [{**item, "image": str((source.parent / item["image"]).resolve())} for item in items]
