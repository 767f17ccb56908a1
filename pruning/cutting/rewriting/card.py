"""The model card of a checkpoint whose weights were made anew: what it is, how, and where it is from."""

from collections.abc import Sequence
from pathlib import Path

from pruning.checkpoints.anatomy_reader import load_config
from pruning.checkpoints.loading import PLAN_NAME
from pruning.cutting.base_model import (
    BASE_CARD_NAME,
    CARD_NAME,
    BaseModel,
    base_of,
    card_metadata,
    read_base_model,
)
from pruning.cutting.model_card import MARK, card_yaml, plain, task_of
from pruning.planning.plan import PruningPlan

_STEPS = ("pruned", "recovered", "sparsified", "quantised")
"""What lop's cards say, in their tags, that became of the base model."""


def base_of_source(folder: Path, hub_id: str | None, *, is_cut: bool) -> BaseModel:
    """The base model of what is made of the checkpoint in `folder`: itself, or, if lop made it, what it was made from.

    Raises InputError for a `hub_id` that can be none, PlanError for a plan in the folder that cannot be read.
    """
    own = read_base_model(folder, hub_id)
    if hub_id is not None or not (is_cut or _steps_before(folder)):
        return own
    plan = PruningPlan.load(folder / PLAN_NAME) if (folder / PLAN_NAME).is_file() else None
    return base_of(folder, plan, is_pruned=is_cut)


def how_to_load(*, is_cut: bool, is_packed: bool) -> str:
    """What loads it, in a line of a card; `is_packed`: weights are in few bits."""
    if is_cut:
        extras = "apply,quantise" if is_packed else "apply"
        return (
            "Layers differ in size: `lop.load_pruned(FOLDER)` loads it, and transformers after "
            f'`lop.register_transformers()`, with `pip install "lop-service[{extras}]"`.'
        )
    return (
        "transformers loads it with `pip install compressed-tensors`."
        if is_packed
        else "It loads as the dense model does."
    )


def write_rewritten_card(folder: Path, base: BaseModel, how: str, lines: Sequence[str]) -> None:
    """Write the card of the checkpoint in `folder`, whose config is there; the card that lies there is moved: the base
    model's own, or what lop said of an earlier step.

    `how` is what became of the base model, in a word; `lines` say more of it. Raises OSError.
    """
    card = folder / CARD_NAME
    before = _steps_before(folder)
    earlier = f"README-{'-'.join(before)}.md"
    if card.is_file():
        card.replace(folder / (earlier if before else BASE_CARD_NAME))
    config = load_config(folder)
    sees = config.get_text_config(decoder=True) is not config
    name, done = plain(base.name), f"{', '.join(before)} and {how}" if before else how
    shown = name if base.hub_id is None else f"[{name}](https://huggingface.co/{base.hub_id})"
    licence = (
        "The base model's folder names no licence: ask where it came from."
        if base.licence is None
        else f"Licence of the base model: {plain(base.licence)}."
    )
    body = [f"# {name.rpartition('/')[2]}, {done}", "", f"{shown}, {done} by LOP. {licence}", "", *lines]
    if before:
        body += ["", f"Its card before it was {how}: [{earlier}]({earlier})."]
    if (folder / BASE_CARD_NAME).is_file():
        body += ["", f"The base model's own card: [{BASE_CARD_NAME}]({BASE_CARD_NAME})."]
    metadata = card_yaml(base, tags=["lop", *before, how], library="transformers", task=task_of(sees=sees))
    card.write_text(f"{metadata}{MARK}\n" + "\n".join(body) + "\n", encoding="utf-8")


def _steps_before(folder: Path) -> list[str]:
    """What the card in `folder` says that lop made of the base model, in order; nothing if it is none of ours."""
    card = folder / CARD_NAME
    if not card.is_file() or MARK not in card.read_text(encoding="utf-8", errors="replace"):
        return []
    tags = card_metadata(folder).get("tags")
    return [tag for tag in tags if tag in _STEPS] if isinstance(tags, list) else []
