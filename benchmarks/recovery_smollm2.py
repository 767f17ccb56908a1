"""SmolLM2-135M-Instruct without 30% of its FFN, trained on its own answers."""

from pathlib import Path
from typing import Any

from benchmarks.real_checkpoint import smollm2
from benchmarks.real_data import CALIBRATION, VALIDATION
from benchmarks.second_order import SMOLLM2
from benchmarks.second_order_data import answered
from benchmarks.steps import Steps

SPARSITY = 0.3
LOSS = "kd-logits"
"""Of the model's own answers there is nothing to learn but what the dense model says. Chosen by conversations that were
kept back of calibration, in a trial: KL .49 after 20 steps, .67 by the default loss; validation took no part."""
TEMPERATURE = 1
"""By the prompts of the part `selection`, in a trial: KL .70 after 20 steps of 40, .76 with 2."""
STEPS = 200
"""Some twenty minutes of two cores by estimate, of the thirty that are allowed; how long it took is in the row."""


def recovered_smollm2(folder: Path, steps: Steps, share: float = 1.0) -> dict[str, Any]:
    """The row: KL to the dense model before and after, on validation prompts; `share` of the steps."""
    half, _ = smollm2(SMOLLM2)
    files = answered(half, folder, steps)
    database = ("--database", f"sqlite:///{folder / 'lop.db'}")
    steps.lop("add smollm2", "model", "add", "smollm2", str(half), "--data", str(files[CALIBRATION]), *database)
    plan, pruned, out = folder / "plan.json", folder / "pruned", folder / "recovered"
    asked = ("--model", "smollm2", "--sparsity", str(SPARSITY), "--method", "uniform", "--out", str(plan))
    steps.lop("plan smollm2", "plan", *asked, *database, makes=plan)
    steps.lop("apply smollm2", "apply", "--plan", str(plan), "--model", str(half), "--out", str(pruned), makes=pruned)
    data = ("--data", str(files[CALIBRATION]), "--validation", str(files[VALIDATION]))
    how: tuple[str, ...] = ("--mode", "lora", "--loss", LOSS, "--temperature", str(TEMPERATURE))
    how += ("--steps", str(max(1, round(STEPS * share))))
    report = steps.lop(
        "recover smollm2", "recover", str(pruned), "--teacher", str(half), *data, *how, "--out", str(out), makes=out
    ).document
    validation = report["validation"]
    return {
        "name": "smollm2",
        "part": "smollm2",
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
