"""The JSON files beside a tokenizer, and the chat template that one of them may hold."""

import json
from pathlib import Path
from typing import Any

from pruning.errors import CheckpointError


def chat_template(folder: Path) -> str:
    """The folder's chat template: its own file, the processor's, or the tokenizer's; the default of several."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        template = json_object(folder / name).get("chat_template")
        if isinstance(template, list):
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        if isinstance(template, str):
            return template
    return ""


def json_object(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no file; raises CheckpointError if it is no JSON."""
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError("a tokenizer's files must be JSON", values=str(path)) from error
    return document if isinstance(document, dict) else {}
