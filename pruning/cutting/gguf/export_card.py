"""The card beside an exported GGUF file, as the hub wants it; one that is there already is kept."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pruning.anatomy.gguf_types import TensorType
from pruning.atomic_file import replace_file
from pruning.checkpoints.file_errors import writing
from pruning.checkpoints.loading import PLAN_NAME
from pruning.cutting.base_model import CARD_NAME
from pruning.cutting.inspection import Inspection, inspect_checkpoint
from pruning.cutting.measured_quality import recovery_lines
from pruning.cutting.model_card import MARK, card_yaml, expected_lines, plain
from pruning.errors import PlanError

if TYPE_CHECKING:
    from pruning.cutting.gguf.export import GgufExport


def stored_as(export: "GgufExport", wanted: TensorType) -> str:
    """What the matrices of an export are stored in, for people; `wanted` was asked for."""
    few = [kind for kind in ("q8_0", "q4_0") if kind.upper() in export.types and kind != wanted.value]
    return f"{wanted.value}, those in few bits in {' and '.join(few)}" if few else wanted.value


def write_export_card(
    folder: Path,
    out: Path,
    mmproj: Path | None,
    stored: str,
    *,
    measured: Sequence[str] = (),
    on_note: Callable[[str], None] = lambda _text: None,
) -> Path | None:
    """Write the card of the export `out` of the checkpoint in `folder` beside it; `stored` is its type, `measured` are
    lines of what was measured of the folder, beside its recovery's.

    None, and nothing is written, if a file of its name is there. A plan in `folder` that cannot be read is told to
    `on_note`, and the card says so. Raises CheckpointError if the card cannot be written.
    """
    card = out.parent / CARD_NAME
    if os.path.lexists(card):
        return None
    is_read = True
    try:
        found = inspect_checkpoint(folder, asks_runtimes=False)
    except PlanError as error:  # the export is good without it
        on_note(f"the model card says nothing of the plan: {error}")
        is_read = False
        found = inspect_checkpoint(folder, reads_plan=False, asks_runtimes=False)
    task = "text-generation" if mmproj is None else "image-text-to-text"
    tags = ["gguf", "lop", *(["pruned"] if found.is_pruned else [])]
    quality = [*recovery_lines(folder), *measured]
    text = "\n".join(
        [
            *_what_it_is(found, stored),
            *(_plan_lines(found) if is_read else _unread_lines()),
            *_measured_lines(quality),
            *_how_to_load(found, out, mmproj),
        ]
    )
    with writing(card, what="model card"):
        replace_file(card, f"{card_yaml(found.base, tags=tags, library='gguf', task=task)}{MARK}\n{text}\n".encode())
    return card


def _what_it_is(found: Inspection, stored: str) -> Iterator[str]:
    name = plain(found.base.name)
    yield f"# {name.rpartition('/')[2]}{', pruned' if found.is_pruned else ''}, for llama.cpp"
    yield from (
        "",
        f"The language model of {name}, {found.parameters:,} parameters with what sees, matrices in {stored}.",
    )


def _plan_lines(found: Inspection) -> Iterator[str]:
    if (plan := found.plan) is not None:
        yield from (
            "",
            f"Cut by [LOP](https://arxiv.org/abs/2506.12826) as plan `{plan.plan_id}` says, units in the order of",
        )
        yield from (f"the ranking `{plan.ranking.sha256}`.", "", *expected_lines(plan))


def _unread_lines() -> Iterator[str]:
    yield from (
        "",
        "Cut by [LOP](https://arxiv.org/abs/2506.12826) as a plan says that the version of lop which exported",
    )
    yield f"this file does not read: `{PLAN_NAME}` in the folder that it was exported from."


def _measured_lines(measured: Sequence[str]) -> Iterator[str]:
    if measured:
        yield from ("", "Measured of the checkpoint that this file was exported from, not of the file:", "", *measured)


def _how_to_load(found: Inspection, out: Path, mmproj: Path | None) -> Iterator[str]:
    if found.base.licence:
        yield from ("", f"Licence of the base model: {plain(found.base.licence)}.")
    yield from ("", "## How to load it", "", "```sh", f'llama-cli -m {out.name} -p "..."')
    if mmproj is not None:
        yield f'llama-mtmd-cli -m {out.name} --mmproj {mmproj.name} --image picture.png -p "..."'
    yield "```"
