"""What a harness asks, as questions of a conversation."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

MARK = "lop_turns"
"""The column of a document that comes from a LLaVA-format file: its turns, as JSON."""

PLACEHOLDER = "<image>"


def from_document(document: Mapping[str, Any]) -> dict[str, Any] | None:
    """The question of a document of a LLaVA-format file; None for another's."""
    if MARK not in document:
        return None
    return {
        "turns": json.loads(document[MARK]),
        "image": document["lop_image"] or None,
        "answer": document["answer"],
    }


def from_text(context: str, pictures: Sequence[Any]) -> dict[str, Any]:
    """What a harness's own task asks in one turn, with its pictures (of Pillow).

    Raises ValueError for more than one: conversations have one picture at most.
    """
    if len(pictures) > 1:
        raise ValueError(f"a question has one picture at most, this one has {len(pictures)}: {context[:60]!r}")
    question: dict[str, Any] = {"turns": [[context.replace(PLACEHOLDER, "").strip(), ""]], "image": None}
    if pictures:
        stored = io.BytesIO()
        pictures[0].convert("RGB").save(stored, format="PNG")
        question["png"] = base64.b64encode(stored.getvalue()).decode()
    return question
