"""The model card of a checkpoint whose weights were made anew: what it is, how, and where it is from."""

from collections.abc import Sequence
from pathlib import Path

from pruning.checkpoints.anatomy_reader import load_config
from pruning.cutting.base_model import BASE_CARD_NAME, CARD_NAME, BaseModel
from pruning.cutting.model_card import MARK, card_yaml, plain, task_of


def write_rewritten_card(folder: Path, base: BaseModel, how: str, lines: Sequence[str]) -> None:
    """Write the card of the checkpoint in `folder`, whose config is there; the base model's own is moved.

    `how` is what became of the base model, in a word; `lines` say more of it. Raises OSError.
    """
    card = folder / CARD_NAME
    has_own = card.is_file()
    if has_own:
        card.replace(folder / BASE_CARD_NAME)
    config = load_config(folder)
    sees = config.get_text_config(decoder=True) is not config
    name = plain(base.name)
    shown = name if base.hub_id is None else f"[{name}](https://huggingface.co/{base.hub_id})"
    licence = (
        "The base model's folder names no licence: ask where it came from."
        if base.licence is None
        else f"Licence of the base model: {plain(base.licence)}."
    )
    body = [f"# {name.rpartition('/')[2]}, {how}", "", f"{shown}, {how} by LOP. {licence}", "", *lines]
    if has_own:
        body += ["", f"The base model's own card: [{BASE_CARD_NAME}]({BASE_CARD_NAME})."]
    metadata = card_yaml(base, tags=["lop", how], library="transformers", task=task_of(sees=sees))
    card.write_text(f"{metadata}{MARK}\n" + "\n".join(body) + "\n", encoding="utf-8")
