"""SmolLM2-135M-Instruct without 30% of its FFN, trained on its own answers to our and its own prompts."""

import json
from pathlib import Path
from typing import Any

from benchmarks.real_checkpoint import smollm2
from benchmarks.real_data import CALIBRATION, PROMPTS, SELECTION, VALIDATION, split
from benchmarks.second_order import SMOLLM2
from benchmarks.second_order_data import answered
from benchmarks.steps import Steps
from pruning.atomic_file import replace_file

SPARSITY = 0.3
LOSS, TEMPERATURE = "kd-logits", 1
"""Of the model's own answers there is nothing to learn but what the dense model says, and at T = 1 is what it says."""
DRAWN, LONGEST_PROMPT, MAX_NEW_TOKENS = 1800, 64, 64
"""Prompts that the model draws itself beside 200 of ours, their most tokens, and those of the one answer to each.

With eight answers to each of ours, and no others, the loss fell to .35 on these and to .55 on others: what was lacking
were different prompts. docs/recovery.md has the trials, by the part `selection`.
"""
BATCH_TOKENS, STEPS = 1024, 330
"""Some 25 minutes of two cores by estimate, of the thirty that are allowed; how long it took is in the row."""
CUT, RECONSTRUCTED = "cut", "reconstructed"
"""What is trained: the checkpoint as it is cut, or what `lop apply --reconstruct` makes of it."""


def recovered_smollm2(folder: Path, steps: Steps, start: str, share: float = 1.0) -> dict[str, Any]:
    """The row: KL to the dense model before and after, on validation prompts; `share` of the steps."""
    half, _ = smollm2(SMOLLM2)
    files = answered(half, folder, steps)
    prompts = [*_prompts_of(CALIBRATION), *_drawn_prompts(half, folder, steps, max(1, round(DRAWN * share)))]
    drawn = _answers(half, folder, steps, "training", prompts, MAX_NEW_TOKENS, "--samples", "1", "--batch-size", "64")
    selection = _answers(half, folder, steps, SELECTION, _prompts_of(SELECTION), 48)
    database = ("--database", f"sqlite:///{folder / 'lop.db'}")
    steps.lop("add smollm2", "model", "add", "smollm2", str(half), "--data", str(files[CALIBRATION]), *database)
    plan, pruned, out = folder / "plan.json", folder / start, folder / f"recovered-{start}"
    asked = ("--model", "smollm2", "--sparsity", str(SPARSITY), "--method", "uniform", "--out", str(plan))
    steps.lop("plan smollm2", "plan", *asked, *database, makes=plan)
    command = ["apply", "--plan", str(plan), "--model", str(half), "--out", str(pruned)]
    if start == RECONSTRUCTED:
        command += ["--reconstruct", str(files[CALIBRATION])]
    steps.lop(f"apply smollm2 {start}", *command, makes=pruned)
    command = ["recover", str(pruned), "--teacher", str(half), "--data", str(drawn), "--selection", str(selection)]
    command += ["--validation", str(files[VALIDATION]), "--mode", "lora", "--loss", LOSS]
    command += ["--temperature", str(TEMPERATURE), "--batch-tokens", str(BATCH_TOKENS)]
    command += ["--steps", str(max(1, round(STEPS * share))), "--out", str(out)]
    return _row(start, steps.lop(f"recover smollm2 {start}", *command, makes=out).document)


def _prompts_of(part: str) -> list[dict[str, Any]]:
    """The prompts that were written for the benchmark, of one part."""
    prompts: list[dict[str, Any]] = json.loads(PROMPTS.read_text())
    chosen = split(prompts, {item["id"]: item["kind"] for item in prompts})[part]
    return [{"id": x["id"], "prompt": x["prompt"]} for x in chosen]


def _drawn_prompts(model: Path, folder: Path, steps: Steps, count: int) -> list[dict[str, Any]]:
    """What the model has users ask; none that decides or reports is among them."""
    out = folder / "drawn-prompts.json"
    command = ["data", "prompts", "--model", str(model), "--out", str(out), "--count", str(count), "--seed", "1"]
    steps.lop("draw prompts", *command, "--max-new-tokens", str(LONGEST_PROMPT), makes=out)
    prompts: list[dict[str, Any]] = json.loads(out.read_text())
    judged = {_folded(x["prompt"]) for part in (SELECTION, VALIDATION) for x in _prompts_of(part)}
    return [item for item in prompts if _folded(item["prompt"]) not in judged]


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _answers(
    model: Path, folder: Path, steps: Steps, name: str, prompts: list[dict[str, Any]], limit: int, *options: str
) -> Path:
    """What the model says to `prompts`, in at most `limit` tokens."""
    name = f"{name}-{limit}"
    asked, out = folder / f"{name}-prompts.json", folder / f"{name}.json"
    replace_file(asked, json.dumps(prompts, indent=1).encode())
    command = ["data", "answer", "--model", str(model), "--prompts", str(asked), "--out", str(out)]
    steps.lop(f"answer {name}", *command, "--max-new-tokens", str(limit), *options, makes=out)
    return out


def _row(start: str, report: dict[str, Any]) -> dict[str, Any]:
    validation = report["validation"]
    return {
        "name": f"smollm2-{start}",
        "part": "smollm2",
        "start": start,
        "loss": LOSS,
        "temperature": TEMPERATURE,
        "kl_before": validation["before"]["kl"],
        "kl_after": validation["after"]["kl"],
        "agreement_before": validation["before"]["agreement"],
        "agreement_after": validation["after"]["agreement"],
        "steps": report["steps"],
        "written": report["written"],
        "training_seconds": report["training_seconds"],
        "peak_memory_bytes": report["peak_memory_bytes"],
    }
