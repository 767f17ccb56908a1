"""The card beside an exported GGUF file, as the hub wants it; one that is there already is kept."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pruning.anatomy.gguf_types import TensorType
from pruning.atomic_file import replace_file
from pruning.checkpoints.file_errors import writing
from pruning.cutting.base_model import CARD_NAME
from pruning.cutting.inspection import Inspection, inspect_checkpoint
from pruning.cutting.model_card import MARK, card_yaml, expected_lines, plain
from pruning.errors import PlanError

if TYPE_CHECKING:
    from pruning.cutting.gguf.export import GgufExport


def stored_as(export: "GgufExport", wanted: TensorType) -> str:
    """What the matrices of an export are stored in, for people; `wanted` was asked for."""
    few = [kind for kind in ("q8_0", "q4_0") if kind.upper() in export.types and kind != wanted.value]
    return f"{wanted.value}, those in few bits in {' and '.join(few)}" if few else wanted.value


def write_export_card(folder: Path, out: Path, mmproj: Path | None, stored: str) -> Path | None:
    """Write the card of the export `out` of the checkpoint in `folder` beside it; `stored` is its type.

    None, and nothing is written, if a file of its name is there, or the plan in `folder` cannot be read. Raises
    CheckpointError if the card cannot be written.
    """
    card = out.parent / CARD_NAME
    if os.path.lexists(card):
        return None
    try:
        found = inspect_checkpoint(folder)
    except PlanError:  # the export is good without it
        return None
    task = "text-generation" if mmproj is None else "image-text-to-text"
    tags = ["gguf", "lop", *(["pruned"] if found.is_pruned else [])]
    text = "\n".join(_lines(found, out, mmproj, stored))
    with writing(card, what="model card"):
        replace_file(card, f"{card_yaml(found.base, tags=tags, library='gguf', task=task)}{MARK}\n{text}\n".encode())
    return card


def _lines(found: Inspection, out: Path, mmproj: Path | None, stored: str) -> list[str]:
    name, plan = plain(found.base.name), found.plan
    lines = [f"# {name.rpartition('/')[2]}{', pruned' if found.is_pruned else ''}, for llama.cpp", ""]
    lines.append(f"The language model of {name}, {found.parameters:,} parameters with what sees, matrices in {stored}.")
    if plan is not None:
        lines += [
            "",
            f"Cut by [LOP](https://arxiv.org/abs/2506.12826) as plan `{plan.plan_id}` says, units in the order of",
        ]
        lines += [f"the ranking `{plan.ranking.sha256}`.", "", *expected_lines(plan)]
    lines += ["", f"Licence of the base model: {plain(found.base.licence)}." if found.base.licence else ""]
    lines += ["", "## How to load it", "", "```sh", f'llama-cli -m {out.name} -p "..."']
    if mmproj is not None:
        lines.append(f'llama-mtmd-cli -m {out.name} --mmproj {mmproj.name} --image picture.png -p "..."')
    return [*lines, "```"]
