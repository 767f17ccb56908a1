"""What second-order statistics are measured and judged on: SmolLM2's own answers, to prompts of two separate parts.

The parts are those of the real benchmark (`benchmarks.real_data`). Calibration needs more tokens than that benchmark's
answers have, so the same prompts are answered at greater length; validation is answered as it is there.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.real_data import CALIBRATION, PROMPTS, VALIDATION, split
from benchmarks.steps import Steps
from pruning.atomic_file import replace_file
from pruning.data.conversations import Conversation

MAX_NEW_TOKENS: Mapping[str, int] = {CALIBRATION: 256, VALIDATION: 48}
"""Longest answer of each part."""

NUM_WORDS = 36
"""Of each answer of validation, of 48 tokens: as long are those that plans are scored on (`beginnings`)."""


def by_length(conversations: Sequence[Conversation]) -> list[Conversation]:
    """The same, short ones first: of batches in that order little is padding.

    Every fifth conversation is held out by what is solved, so these are of every length.
    """
    return sorted(conversations, key=lambda x: sum(len(turn.question) + len(turn.answer) for turn in x.turns))


def beginnings(conversations: Sequence[Conversation], num_words: int = NUM_WORDS) -> list[Conversation]:
    """The same, of each answer no more than so many words: it costs less to score on, and tells as much of a plan.

    What a model says greedily begins alike, however long it may go on.
    """
    return [
        replace(x, turns=tuple(replace(turn, answer=" ".join(turn.answer.split(" ")[:num_words])) for turn in x.turns))
        for x in conversations
    ]


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
