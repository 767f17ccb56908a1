"""The part `reload` of `benchmarks.second_order`: what plans with bits write, read back in new processes.

Three plans a model: the decoder's sites in 8 bits, in 4, and the smallest joint plan that the part `joint` has found,
if it was run. The folder that `lop apply` writes of it is loaded by transformers (by itself where nothing is cut, else
by lop's own classes), and the file that `lop export gguf`
makes of that is run by llama.cpp. Both are held against the rounded PyTorch model, dense weights cut and rounded in
memory in float32, which is what the evaluator scores: transformers by its logits, and by its KL on validation
conversations to what was scored; llama.cpp by its next tokens. It rounds what enters a matrix to 8 bits, and keeps
keys and values in f16.

Next tokens are asked for after every token of conversations, without their pictures: their turns are the text. What is
to agree are tokens of answers, as wherever this project speaks of agreement; how many agree of all, questions included,
which nobody would have a model say, is said beside it. Embeddings and head are f16 in the file.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.second_order_figures import Found
from benchmarks.second_order_joint import JointModel
from benchmarks.second_order_reload import LLAMA_CPP, TRANSFORMERS, Said, Texts, logits_of_model, said, told
from benchmarks.steps import Steps
from pruning.anatomy.architecture import Architecture, Option
from pruning.anatomy.decoder_view import decoder_view
from pruning.anatomy.dtypes import torch_dtype
from pruning.arrays import BoolArray
from pruning.checkpoints.loading import load_model, load_processor
from pruning.cutting.prune_checkpoint import prune_checkpoint
from pruning.cutting.surgery import cut_model
from pruning.data.batches import make_batches
from pruning.measuring.rounded_weights import RoundedWeights
from pruning.planning.make_plan import make_plan
from pruning.planning.plan import PlanRanking, PlanTarget, PruningPlan
from pruning.planning.plan_parts import content_id

RUNS = ("benchmarks.second_order_reload", "lop.commands.export")
"""What runs in processes of its own."""

_CODE = ("benchmarks.second_order_written", *RUNS)

NUM_POSITIONS = 4_000
"""Tokens of answers, at least, where the conversations have them: those of validation come first, then those of
calibration."""

COMPARED_KL = 1e-3
"""Nats a token: differences of smaller KL are in parts of this, since rounding does not shrink with them."""

EIGHT, FOUR, SMALLEST = "8_bits", "4_bits", "joint"


def reload_rows(
    model: JointModel, key: Sequence[str], steps: Steps, smallest: list[dict[str, Any]] | None
) -> list[dict[str, Any]]:
    """One row a plan; `smallest` is the document of the joint plan, None if there is none."""
    documents = {EIGHT: in_bits(model, 8).document(), FOUR: in_bits(model, 4).document()}
    if smallest is not None:
        documents[SMALLEST] = smallest
    rows = []
    for name, document in documents.items():
        own = [*key, "reload", model.anatomy.dtype, content_id({"architecture": document})]
        found = steps.call(f"reload {name}", own, partial(measured, model, name, document), modules=_CODE)
        rows.append({**found.document, "seconds": found.seconds})
    return rows


def reload_figures(rows: Sequence[dict[str, Any]]) -> Found:
    """Of the worse plan: how far logits and KL of the folder are from those that were scored, and at how many
    positions llama.cpp was asked; of each plan, the share of these with the same next token."""
    names = list(dict.fromkeys(row["model"] for row in rows))
    of = {name: [row for row in rows if row["model"] == name] for name in names}
    found: dict[str, dict[str, float | None]] = {
        "reload_logit_difference": {name: max(x["logit_difference"] for x in own) for name, own in of.items()},
        "reload_kl_difference": {name: max(x["kl_difference"] for x in own) for name, own in of.items()},
        "llama_positions": {name: min(x["positions"] for x in own) for name, own in of.items()},
    }
    for row in rows:
        found.setdefault(f"llama_agreement_{row['plan']}", {})[row["model"]] = row["llama_agreement"]
    return found


def in_bits(model: JointModel, bits: int) -> Architecture:
    """All units of every site, in so many bits."""
    return Architecture.of((site, Option(units, bits)) for site, units in model.space.dense.items())


def planned(model: JointModel, architecture: Architecture) -> PruningPlan:
    """The plan of an architecture that no search has chosen."""
    return make_plan(
        model.anatomy,
        architecture,
        model_id=model.name,
        target=PlanTarget(sparsity=0.0),
        ranking=PlanRanking(sha256=model.order.sha256),
        method="additive-dp",
    )


def measured(model: JointModel, name: str, document: list[dict[str, Any]]) -> dict[str, Any]:
    """One row."""
    architecture = Architecture.from_document(document)
    texts, in_answers = _texts(model)
    work = model.folder / ".reload"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    plan = planned(model, architecture)
    folder = prune_checkpoint(model.stored, plan, model.order, work / "folder")
    export = ["export", "gguf", "--model", str(folder), "--out", str(work / "model.gguf"), "--no-card", "--json"]
    exported = json.loads(_output("lop.cli", *export))
    (scored,) = model.on_validation([architecture])
    expected = said(logits_of_model(rounded_in_memory(model, architecture), texts))
    asked: dict[str, Any] = {"texts": texts}
    llama = _said_by(LLAMA_CPP, work / "model.gguf", asked)[0]
    asked |= {"dense": str(model.path), "conversations": [told(x) for x in model.validation]}
    reloaded, metrics = _said_by(TRANSFORMERS, folder, asked)
    row = {
        "part": "reload",
        "model": model.name,
        "plan": name,
        "kl_scored": scored.kl,
        "kl_reloaded": metrics["kl"],
        "kl_difference": abs(metrics["kl"] - scored.kl) / max(scored.kl, COMPARED_KL),
        **compared(expected, reloaded, llama, in_answers),
        "gguf_architecture": exported["architecture"],
        "gguf_types": exported["types"],
        "gguf_bytes": exported["file_bytes"],
        "bytes_planned": plan.achieved.disk_bytes,
        "bytes_written": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
    }
    shutil.rmtree(work)
    return row


def compared(expected: Said, reloaded: Said, llama: Said, in_answers: BoolArray) -> dict[str, Any]:
    """What transformers and llama.cpp say against what is `expected`; margins tell how near other tokens were.

    `in_answers`: [N] after which tokens one of an answer follows.
    """
    differs, largest = llama["chosen"] != expected["chosen"], np.abs(expected["logits"]).max()
    return {
        "logit_difference": float(np.abs(reloaded["logits"] - expected["logits"]).max() / largest),
        "reloaded_agreement": float((reloaded["chosen"] == expected["chosen"]).mean()),
        "positions": int(in_answers.sum()),
        "llama_agreement": 1.0 - float(differs[in_answers].mean()),
        "llama_agreement_everywhere": 1.0 - float(differs.mean()),
        "llama_largest_margin": float(expected["margins"][differs].max(initial=0.0)),
        "median_margin": float(np.median(expected["margins"])),
    }


@torch.no_grad()
def rounded_in_memory(model: JointModel, architecture: Architecture) -> Any:
    """The dense model, cut, each of its weights that is to be in few bits with the values that it is read back with."""
    found, rounder = load_model(model.path), RoundedWeights(torch_dtype(model.anatomy.dtype), max_bytes=0)
    cut_model(found, model.anatomy.sizes(architecture), model.order)
    view = decoder_view(found)
    for site, option in architecture.items:
        for index, projection in enumerate(view.family.linears(site.sublayer) if option.bits is not None else ()):
            weight = view.projection(site.layer, projection).weight
            weight.copy_(rounder(site, index, option.units, option.bits or 0, weight, None))
    return found


def _texts(model: JointModel) -> tuple[Texts, BoolArray]:
    """Token ids of conversations, in order, until `NUM_POSITIONS` are of answers; and [N] after which of all tokens one
    of an answer follows."""
    conversations = [replace(x, image=None) for x in (*model.validation, *model.calibration)]
    texts: list[list[int]] = []
    answers: list[BoolArray] = []
    processor, found = load_processor(model.path), 0
    for conversation in conversations:
        if found >= NUM_POSITIONS:
            break
        for batch in make_batches([conversation], processor, batch_size=1):  # one row: nothing is padding
            for row, ids in enumerate(batch.inputs["input_ids"].tolist()):
                own = np.zeros(len(ids), dtype=np.bool_)
                for span in batch.spans:
                    if span.row == row:
                        own[span.start - 1 : span.stop - 1] = True
                texts.append(ids)
                answers.append(own)
                found += int(own.sum())
    return texts, np.concatenate(answers)


def _said_by(runtime: str, path: Path, asked: dict[str, Any]) -> tuple[Said, dict[str, Any]]:
    """What a runtime says in a process of its own, and what that prints."""
    out = path.with_name(f"{runtime}.npz")
    printed = _output("benchmarks.second_order_reload", runtime, str(path), str(out), stdin=json.dumps(asked))
    with np.load(out, allow_pickle=False) as file:
        return dict(file), json.loads(printed.splitlines()[-1])


def _output(module: str, *arguments: str, stdin: str | None = None) -> str:
    """Raises RuntimeError with what the process said if it fails."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed: {done.stderr.strip()[-2000:]}")
    return done.stdout
