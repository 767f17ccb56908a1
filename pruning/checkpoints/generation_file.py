"""generation_config.json: of all that it may hold, only the special tokens are part of what a model is."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.checkpoints.loading_errors import LOADING_ERRORS
from pruning.errors import CheckpointError
from pruning.reasons import reason_of

if TYPE_CHECKING:
    from transformers import GenerationConfig

NAME = "generation_config.json"
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def token_ids(name: str, value: Any) -> list[int]:
    """The ids that `value` of the special token `name` stands for: one or several, none for None.

    Raises CheckpointError if it is no id.
    """
    ids = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    if any(isinstance(x, bool) or not isinstance(x, int) for x in ids):
        raise CheckpointError(
            f"{NAME} and config.json name special tokens by their ids, whole numbers",
            values=f"{name} {value!r}",
            remedy=f"Correct {name} in the model's folder",
        )
    return ids


def special_tokens_alone(folder: Path) -> "GenerationConfig | None":
    """The special tokens of the folder's file, if transformers cannot read the rest of it; else None.

    Of a file that it cannot read transformers says nothing or refuses the model, and answers then end at other tokens
    than they should. Raises CheckpointError if the file is no JSON object, or a special token in it no id.
    """
    from transformers import GenerationConfig

    path = folder / NAME
    if not path.is_file():
        return None
    document = _json_object(path)
    tokens = {name: document[name] for name in SPECIAL_TOKENS if name in document}
    for name, value in tokens.items():
        token_ids(name, value)
    try:
        GenerationConfig.from_pretrained(folder, local_files_only=True)
    except LOADING_ERRORS:  # a setting of some version's: none has a say here
        return GenerationConfig(**tokens)
    return None


def _json_object(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(document, dict):
            return document
        found = f"a {type(document).__name__}"
    except (OSError, ValueError, RecursionError) as error:
        found = reason_of(error)
    raise CheckpointError(
        f"{NAME} must be a JSON object",
        values=f"{path}: {found}",
        remedy="Correct it, or remove it: special tokens are then those of config.json",
    )
