"""Adapter files in a checkpoint's folder: fine-tuning leaves them there beside the weights that they were merged into.

transformers puts such an adapter on top of the weights where peft is installed, and ignores it elsewhere. Here the
folder's own weights are the model, everywhere.
"""

import json
from pathlib import Path

from pruning.errors import CheckpointError

CONFIG_NAME = "adapter_config.json"

WITHOUT_ADAPTERS = {"subfolder": "no-adapters-here"}
"""`adapter_kwargs` of `from_pretrained`: where it looks for an adapter, which is nowhere."""


def adapter_note(folder: str | Path) -> str | None:
    """What to tell the user of a folder with adapter files; None if there are none."""
    path = Path(folder) / CONFIG_NAME
    if not path.is_file():
        return None
    return (
        f"{path} is not applied: the weights beside it are used as they are. If they are not merged with the adapter, "
        "merge them first (peft: merge_and_unload, save_pretrained)"
    )


def check_not_adapter_alone(folder: Path) -> None:
    """Raises CheckpointError for a folder that holds an adapter and no model's weights."""
    if not (folder / CONFIG_NAME).is_file():
        return
    if any(
        not path.name.startswith("adapter_") for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern)
    ):
        return
    try:
        base = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError):
        base = None
    raise CheckpointError(
        "the folder must hold a whole model's weights",
        values=f"{folder}: an adapter alone" + (f", of {base}" if base else ""),
        remedy="Merge it into its base model and save that (peft: merge_and_unload, save_pretrained)",
    )
