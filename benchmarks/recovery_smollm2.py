"""SmolLM2-135M-Instruct without 30% of its FFN, trained on its own answers."""

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
SAMPLES, MAX_NEW_TOKENS = 8, 64
"""Answers drawn to each of 200 prompts, and the longest; docs/recovery.md has the trials, by the part `selection`."""
BATCH_TOKENS, STEPS = 1024, 330
"""Some 25 minutes of two cores by estimate, of the thirty that are allowed; how long it took is in the row."""
CUT, RECONSTRUCTED = "cut", "reconstructed"
"""What is trained: the checkpoint as it is cut, or what `lop apply --reconstruct` makes of it."""


def recovered_smollm2(folder: Path, steps: Steps, start: str, share: float = 1.0) -> dict[str, Any]:
    """The row: KL to the dense model before and after, on validation prompts; `share` of the steps."""
    half, _ = smollm2(SMOLLM2)
    files = answered(half, folder, steps)
    drawn = _answers(half, folder, steps, CALIBRATION, MAX_NEW_TOKENS, "--samples", str(SAMPLES))
    selection = _answers(half, folder, steps, SELECTION, 48)
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


def _answers(model: Path, folder: Path, steps: Steps, part: str, limit: int, *options: str) -> Path:
    """What the model says to the prompts of a part, in at most `limit` tokens."""
    prompts: list[dict[str, Any]] = json.loads(PROMPTS.read_text())
    chosen = split(prompts, {item["id"]: item["kind"] for item in prompts})[part]
    name = f"{part}-{limit}"
    asked, out = folder / f"{name}-prompts.json", folder / f"{name}.json"
    replace_file(asked, json.dumps([{"id": x["id"], "prompt": x["prompt"]} for x in chosen], indent=1).encode())
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
