"""Conversations on disk, in LLaVA's format: one JSON list a split, pictures as PNG beside it."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from reference.conversations import Conversation, sample_conversation
from reference.scans import Pool
from reference.scenes import render_scenes

Split = Literal["calibration", "validation", "test"]

SPLIT_SIZES: dict[Split, int] = {"calibration": 128, "validation": 200, "test": 200}
SPLIT_POOLS: dict[Split, Pool] = {"calibration": "train", "validation": "validation", "test": "test"}
_STREAMS: dict[Split, int] = {"calibration": 1001, "validation": 1002, "test": 1003}
"""Random streams of the splits; training uses others (see batches.py), so no scene is drawn twice."""


def sample_split(
    split: Split, seed: int, count: int | None = None, *, pool: Pool | None = None
) -> tuple[list[Conversation], list[npt.NDArray[np.uint8]]]:
    """The first `count` conversations of a split (all by default), each with its picture uint8 [H, W, 3].

    Its digits are of the split's own `pool` unless another one is given.
    """
    conversations, pictures = [], []
    for index in range(SPLIT_SIZES[split] if count is None else count):
        rng = np.random.default_rng([seed, _STREAMS[split], index])
        conversation = sample_conversation(rng)
        conversations.append(conversation)
        pictures.append(render_scenes([conversation.scene], pool or SPLIT_POOLS[split], rng)[0])
    return conversations, pictures


def to_record(conversation: Conversation, split: Split, index: int) -> dict[str, Any]:
    """One entry of the JSON list. `kinds` is extra: the kind of each question, for reports; loaders may ignore it."""
    turns: list[dict[str, str]] = []
    for turn in conversation.turns:
        start = "<image>\n" if not turns else ""
        turns += [{"from": "human", "value": start + turn.question}, {"from": "gpt", "value": turn.answer}]
    return {
        "id": f"{split}-{index:06d}",
        "image": f"images/{split}/{index:06d}.png",
        "conversations": turns,
        "kinds": [turn.kind for turn in conversation.turns],
    }


def write_split(folder: Path, split: Split, seed: int, count: int | None = None, *, pool: Pool | None = None) -> None:
    """Write `<split>.json` and its pictures below `folder`; the arguments are those of `sample_split`."""
    conversations, pictures = sample_split(split, seed, count, pool=pool)
    records = [to_record(conversation, split, index) for index, conversation in enumerate(conversations)]
    for record, picture in zip(records, pictures, strict=True):
        path = folder / record["image"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path, optimize=True)
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    (folder / f"{split}.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
