"""The prompts of the real benchmark, and who sees the answers to them: three files without a conversation in common.

`real_prompts.json` holds prompts of many kinds, written for this benchmark. The dense model answers all of them; of
each kind, in the file's order, of every six the first goes to validation, the second to selection and four to
calibration. Files are ordered so that their first few conversations are of as many kinds as there are.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from pruning.atomic_file import replace_file

PROMPTS = Path(__file__).parent / "real_prompts.json"
CALIBRATION, SELECTION, VALIDATION = "calibration", "selection", "validation"
TURNS = (VALIDATION, SELECTION, CALIBRATION, CALIBRATION, CALIBRATION, CALIBRATION)

Item = Mapping[str, Any]


def split(conversations: Sequence[Item], kinds: Mapping[str, str]) -> dict[str, list[Item]]:
    """Conversations by who sees them; `kinds` has the kind of each by its id."""
    by_kind: dict[str, list[Item]] = {}
    for item in conversations:
        by_kind.setdefault(kinds[item["id"]], []).append(item)
    parts: dict[str, list[list[Item]]] = {name: [] for name in dict.fromkeys(TURNS)}
    for members in by_kind.values():
        for name, own in parts.items():
            own.append([item for index, item in enumerate(members) if TURNS[index % len(TURNS)] == name])
    return {name: _interleaved(groups) for name, groups in parts.items()}


def _interleaved(groups: Sequence[Sequence[Item]]) -> list[Item]:
    """The first of each group, then the second of each, and so on."""
    return [item for item in chain.from_iterable(zip_longest(*groups)) if item is not None]


def write_split(answers: Path, prompts: Path, folder: Path) -> dict[str, Path]:
    """One LLaVA-format file a part in `folder`, by its name."""
    kinds = {item["id"]: item["kind"] for item in json.loads(prompts.read_text())}
    files = {}
    for name, items in split(json.loads(answers.read_text()), kinds).items():
        files[name] = folder / f"{name}.json"
        replace_file(files[name], json.dumps(items, indent=1, ensure_ascii=False).encode())
    return files


def begun_answers(conversations: Sequence[Item]) -> list[tuple[str, str]]:
    """(question, beginning of its answer), twice for each: nothing, and the first half of the answer's words."""
    found = []
    for item in conversations:
        question, answer = (turn["value"] for turn in item["conversations"][:2])
        words = answer.split(" ")
        found += [(question, ""), (question, " ".join(words[: len(words) // 2]))]
    return list(dict.fromkeys(found))
