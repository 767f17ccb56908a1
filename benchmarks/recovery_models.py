"""The cut models that are recovered: by each paradigm at each share of the reference's decoder, with their data.

- `layerwise`: whole layers by block influence (ShortGPT), as the study cuts;
- `widthwise`: the same share of every layer's FFN channels, in the order of LLM-Pruner's first-order importance, and of
  its KV groups, in the order of the registered ranking (LLM-Pruner scores heads in the same backward pass; here it
  scores channels alone);
- `ours`: what `lop search --space all` finds on the calibration conversations.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.steps import Steps
from benchmarks.subject import REFERENCE
from lop.workflows.measuring import measure_activations
from pruning.anatomy.decoder_view import decoder_view
from pruning.atomic_file import replace_file
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.loading import load_model, load_processor, load_pruned
from pruning.cutting.prune_checkpoint import prune_checkpoint, save_pruned
from pruning.data.batches import make_batches
from pruning.data.conversations import load_conversations
from pruning.measuring.gradient_statistics import measure_gradients
from pruning.measuring.importance import group_scores, ranking_of
from pruning.planning.make_plan import make_plan
from pruning.planning.plan import PlanRanking, PlanTarget, PruningPlan
from pruning.planning.ranking import Ranking
from pruning.planning.scope import Scope
from reference.dataset import write_split

MODEL = REFERENCE / "model"
CALIBRATION = REFERENCE / "data" / "calibration.json"
VALIDATION = REFERENCE / "data" / "validation.json"
SEARCHED = REFERENCE / "search" / "trained.csv"
RATIOS = (0.15, 0.3, 0.45, 0.6)
PARADIGMS = ("layerwise", "widthwise", "ours")
NUM_TRAINING = 2560
"""Conversations; 5% of them are as many as the calibration set has."""
_TRAINING_SEED = 71
_TAYLOR_CONVERSATIONS = 10
"""As LLM-Pruner has them."""
_EVALUATIONS = 60


def training_data(folder: Path, count: int) -> Path:
    """New conversations of the reference's world, none of which any part of the repository has."""
    path = folder / "calibration.json"
    if not path.is_file():
        write_split(folder, "calibration", _TRAINING_SEED, count)
    return path


def registered(folder: Path, steps: Steps, calibration: Path) -> tuple[str, ...]:
    """Words of commands that name the database in `folder`, in which the reference is registered."""
    place = ("--database", f"sqlite:///{folder / 'lop.db'}")
    steps.lop("add reference", "model", "add", "reference", str(MODEL), "--data", str(calibration), *place)
    return place


def search_words(calibration: Path, ratios: Sequence[float], share: float) -> tuple[str, ...]:
    """Of the `lop search` for these ratios, with `share` of the evaluations."""
    evaluations = max(6, round(_EVALUATIONS * share))
    asked = [word for ratio in ratios for word in ("-s", str(ratio))]
    words = ("search", "--model", "reference", "--data", str(calibration), "--space", "all", *asked)
    return (*words, "--evaluations", str(evaluations))


def ratio_models(
    folder: Path, steps: Steps, ratios: Sequence[float], calibration: Path, share: float = 1.0
) -> dict[tuple[str, float], Path]:
    """The pruned checkpoints by paradigm and ratio, made if they are not there; `share` of the evaluations."""
    place = registered(folder, steps, calibration)
    steps.lop("search", *search_words(calibration, RATIOS, share), *place)
    found: dict[tuple[str, float], Path] = {}
    for ratio in ratios:
        for paradigm, asked in (("layerwise", ("shortgpt", "layers")), ("ours", ("mcts", "all"))):
            out = folder / f"{paradigm}-{ratio}"
            plan = folder / f"{paradigm}-{ratio}.json"
            method, space = asked
            how = ("--method", method, "--space", space, "--sparsity", str(ratio), "--scope", "decoder")
            steps.lop(f"plan {out.name}", "plan", "--model", "reference", *how, "--out", str(plan), *place, makes=plan)
            apply = ("apply", "--plan", str(plan), "--model", str(MODEL), "--out", str(out))
            steps.lop(f"apply {out.name}", *apply, makes=out)
            found[paradigm, ratio] = out
            solved = folder / f"{paradigm}-{ratio}-reconstructed"
            steps.lop(f"apply {solved.name}", *apply[:-1], str(solved), "--reconstruct", str(calibration), makes=solved)
        out = folder / f"widthwise-{ratio}"
        for is_solved in (False, True):
            path = out.with_name(f"{out.name}-reconstructed") if is_solved else out
            steps.call(f"cut {path.name}", [str(ratio)], partial(cut_widthwise, ratio, calibration, path, is_solved))
        found["widthwise", ratio] = out
    return found


def cut_widthwise(ratio: float, calibration: Path, out: Path, solved: bool) -> dict[str, Any]:
    """Write the checkpoint, if it is not there; the share of the decoder that is gone."""
    from lop.workflows.reconstructing import reconstruction_on

    anatomy = read_anatomy(MODEL)
    conversations = load_conversations(calibration)
    statistics = measure_activations(MODEL, conversations)
    batches = make_batches(conversations[:_TAYLOR_CONVERSATIONS], load_processor(MODEL))
    taylor = measure_gradients(load_model(MODEL), batches)
    ranking = Ranking.from_scores(
        anatomy,
        [taylor[f"layers.{i}.ffn_taylor"] for i in range(anatomy.num_layers)],
        group_scores=group_scores(statistics, anatomy),
    )
    groups = [max(1, round(layer.num_kv_groups * (1 - ratio))) for layer in anatomy.layers]
    widths = max(
        (
            [width] * anatomy.num_layers
            for width in range(8, anatomy.layers[0].ffn_width + 1, 8)
            if _removed(anatomy, [width] * anatomy.num_layers, groups) >= ratio
        ),
        default=[8] * anatomy.num_layers,
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
    if not out.exists():
        prune_checkpoint(
            MODEL, plan, ranking, out, reconstruction=reconstruction_on(MODEL, conversations) if solved else None
        )
    return {"removed": plan.achieved.removed[Scope.DECODER]}


def _removed(anatomy: Any, widths: Sequence[int], groups: Sequence[int]) -> float:
    plan = make_plan(
        anatomy,
        anatomy.architecture(widths, groups),
        model_id="reference",
        target=PlanTarget(sparsity=0.5),
        method="widthwise-taylor",
        ranking=PlanRanking(sha256="0" * 64),
    )
    return plan.achieved.removed[Scope.DECODER]


def searched_ffn_model(folder: Path, sparsity: float) -> Path:
    """The checkpoint of the least calibration KL among the reference's stored samples with that FFN sparsity."""
    out = folder / f"searched-ffn-{sparsity}"
    if out.exists():
        return out
    anatomy = read_anatomy(MODEL)
    ranking = ranking_of(measure_activations(MODEL, load_conversations(CALIBRATION)), anatomy)
    described = json.loads((SEARCHED.with_suffix(".json")).read_text())
    if ranking.sha256 != described["ranking_sha256"]:
        raise ValueError(f"{SEARCHED} is of ranking {described['ranking_sha256']}, the reference has {ranking.sha256}")
    with SEARCHED.open(newline="") as file:
        samples = [(float(row["kl"]), tuple(map(int, row["widths"].split()))) for row in csv.DictReader(file)]
    wanted = round(sum(layer.ffn_width for layer in anatomy.layers) * (1 - sparsity))
    _, widths = min(sample for sample in samples if sum(sample[1]) == wanted)
    plan = make_plan(
        anatomy,
        anatomy.architecture(widths),
        model_id="reference",
        target=PlanTarget(sparsity=sparsity),
        method="mcts",
        ranking=PlanRanking(sha256=ranking.sha256),
    )
    return prune_checkpoint(MODEL, plan, ranking, out)


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
