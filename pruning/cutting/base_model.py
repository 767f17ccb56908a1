"""What a dense checkpoint's folder says of itself: its id on the hub, its licence, what else its card declares."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pruning.errors import InputError
from pruning.planning.plan import PruningPlan

CARD_NAME = "README.md"
BASE_CARD_NAME = "README-base.md"
"""Where the base model's own card lies in a pruned folder, as it was."""

_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
_INHERITED = ("license", "license_name", "license_link", "language", "pipeline_tag")
"""What of a base model's metadata holds for what is cut from it; the hub's names."""

_MAX_CARD_BYTES = 2**20


@dataclass(frozen=True)
class BaseModel:
    """The model that another was made from.

    Attributes:
        name: to show.
        hub_id: ORGANISATION/NAME on the hub; None if nothing says it.
        metadata: what holds for the pruned model too, by the hub's names (`license`, `language`, ...).
    """

    name: str
    hub_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def licence(self) -> str | None:
        """The licence as its metadata names it."""
        named = self.metadata.get("license_name") or self.metadata.get("license")
        return None if named is None else str(named)


def read_base_model(folder: Path, hub_id: str | None = None) -> BaseModel:
    """The model in `folder`. What cannot be read says nothing.

    Its id is `hub_id`, else that of the hub's cache which the folder lies in, else what config.json says that it came
    from. The licence is that of its card, else of config.json. Raises InputError for a `hub_id` that can be none.
    """
    if hub_id is not None and not _HUB_ID.fullmatch(hub_id):
        raise InputError("a model's id on the hub is ORGANISATION/NAME", values=repr(hub_id))
    config = _config(folder)
    found = hub_id or _cached_id(folder) or _recorded_id(config)
    metadata = {name: value for name, value in card_metadata(folder).items() if name in _INHERITED and value}
    if "license" not in metadata and isinstance(config.get("license"), str):
        metadata["license"] = config["license"]
    return BaseModel(found or folder.resolve().name, found, metadata)


def base_of(folder: Path, plan: PruningPlan | None, *, is_pruned: bool) -> BaseModel:
    """What the folder was made from: the id in its card, else how its plan calls the model. A dense one is its own."""
    own, said = read_base_model(folder), card_metadata(folder).get("base_model")
    if isinstance(said, str):
        return BaseModel(said, said, own.metadata)
    if not is_pruned:
        return own
    return BaseModel("a model that the folder does not name" if plan is None else plan.model.id, None, own.metadata)


def base_of_loaded(name_or_path: str, otherwise: str) -> BaseModel:
    """What a model in memory was loaded from, as transformers remembers it: a folder, or an id; else `otherwise`."""
    if name_or_path and (Path(name_or_path) / "config.json").is_file():
        return read_base_model(Path(name_or_path))
    hub_id = name_or_path if _HUB_ID.fullmatch(name_or_path) else None
    return BaseModel(hub_id or otherwise, hub_id)


def card_metadata(folder: Path) -> dict[str, Any]:
    """The YAML between the lines `---` at the top of the folder's card; empty if there is none that can be read."""
    import yaml  # type: ignore[import-untyped]

    try:
        with (folder / CARD_NAME).open("rb") as file:
            text = file.read(_MAX_CARD_BYTES).decode("utf-8", errors="replace").replace("\r\n", "\n")
        if not text.startswith("---\n"):
            return {}
        found = yaml.safe_load(text[4:].partition("\n---")[0])
    except (OSError, yaml.YAMLError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _config(folder: Path) -> dict[str, Any]:
    try:
        document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _cached_id(folder: Path) -> str | None:
    """The id in the name of a hub cache's folder: models--ORGANISATION--NAME/snapshots/REVISION."""
    place = folder.absolute()
    parts = place.parent.parent.name.split("--", 2)
    if place.parent.name != "snapshots" or len(parts) != 3 or parts[0] != "models":
        return None
    return f"{parts[1]}/{parts[2]}"


def _recorded_id(config: Mapping[str, Any]) -> str | None:
    """`_name_or_path`, unless it is a path."""
    named = config.get("_name_or_path")
    is_id = (
        isinstance(named, str) and _HUB_ID.fullmatch(named) and not named.startswith(".") and not Path(named).exists()
    )
    return named if is_id else None
