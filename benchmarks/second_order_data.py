"""What second-order statistics are measured and judged on: SmolLM2's own answers, to prompts of two separate parts.

The parts are those of the real benchmark (`benchmarks.real_data`). Calibration needs more tokens than that benchmark's
answers have, so the same prompts are answered at greater length; validation is answered as it is there.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.real_data import CALIBRATION, PROMPTS, VALIDATION, split
from benchmarks.steps import Steps
from pruning.atomic_file import replace_file

MAX_NEW_TOKENS: Mapping[str, int] = {CALIBRATION: 256, VALIDATION: 48}
"""Longest answer of each part."""


def answered(model: Path, folder: Path, steps: Steps, num_prompts: int | None = None) -> dict[str, Path]:
    """One LLaVA-format file a part in `folder`, by its name; made by `lop data answer` if they are not there.

    `num_prompts`: of each part, the first so many; None for all.
    """
    prompts: list[dict[str, Any]] = json.loads(PROMPTS.read_text())
    parts = split(prompts, {item["id"]: item["kind"] for item in prompts})
    files = {}
    for name, limit in MAX_NEW_TOKENS.items():
        asked, out = folder / f"{name}-prompts.json", folder / f"{name}.json"
        chosen = [{"id": item["id"], "prompt": item["prompt"]} for item in parts[name][:num_prompts]]
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(asked, json.dumps(chosen, indent=1).encode())
        command = ["data", "answer", "--model", str(model), "--prompts", str(asked), "--out", str(out)]
        steps.lop(f"answer {name}", *command, "--max-new-tokens", str(limit), makes=out)
        files[name] = out
    return files
