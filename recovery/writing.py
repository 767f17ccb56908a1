"""The folder that a recovery ends with: a checkpoint as `lop apply` writes them, and the report."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pruning.checkpoints.anatomy_reader import layer_shapes, load_config
from pruning.checkpoints.file_errors import writing
from pruning.checkpoints.headers import INDEX_NAME, weight_files
from pruning.checkpoints.loading import PLAN_NAME
from pruning.checkpoints.safetensors_layout import MAX_SHARD_SIZE
from pruning.cutting.base_model import CARD_NAME, base_of
from pruning.cutting.model_card import MARK, write_card
from pruning.cutting.pruned_config import RECOVERY_KEY
from pruning.cutting.rewriting.card import write_rewritten_card
from pruning.cutting.streaming.companions import companion_bytes, copy_companions
from pruning.cutting.streaming.draft import SAVED_MODEL, locked_draft
from pruning.cutting.streaming.place import check_room
from pruning.planning.plan import PruningPlan, RecoveryStep
from recovery.report import REPORT_NAME

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WHAT = "recovered checkpoint"
_REST_BYTES = 2**22


def write_recovered(
    pruned: Path,
    out: Path,
    report: dict[str, Any],
    *,
    plan: PruningPlan | None,
    step: RecoveryStep,
    model: "PreTrainedModel | None",
    dtype: torch.dtype,
) -> None:
    """Write `out`: everything but the weights from the folder `pruned`, with the step in plan and config.

    `model` has the weights, in any type; None: nothing was better than the start, whose files are copied as they are.

    Raises CheckpointError if the folder cannot be written.
    """
    with writing(out, what=_WHAT), locked_draft(out, SAVED_MODEL) as draft:
        check_output_room(pruned, out)
        with draft.writing({}) as folder:
            if model is None:
                for path in (*weight_files(pruned), pruned / INDEX_NAME, pruned / PLAN_NAME):
                    if path.is_file():
                        shutil.copyfile(path, folder / path.name)
                shutil.copyfile(pruned / "config.json", folder / "config.json")
            else:
                model.to(dtype).save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
                _write_config(pruned, folder, step)
                if plan is not None:
                    recovered = plan.recovered_by(step)
                    (folder / PLAN_NAME).write_text(recovered.to_json())
            copy_companions(pruned, folder)
            (folder / REPORT_NAME).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            if not (folder / CARD_NAME).is_file():
                _write_card(pruned, folder)
            _add_to_card(folder, report)


def check_output_room(pruned: Path, out: Path) -> None:
    """Raises CheckpointError unless the disk has room for `out`."""
    check_room({out: output_bytes(pruned)}, what=_WHAT)


def output_bytes(pruned: Path) -> int:
    """Of the output, about: it is as large as what it is made from."""
    return sum(path.stat().st_size for path in weight_files(pruned)) + companion_bytes(pruned) + _REST_BYTES


def _write_config(pruned: Path, folder: Path, step: RecoveryStep) -> None:
    """The pruned checkpoint's own, so that nothing that transformers does not know is lost."""
    document: dict[str, Any] = json.loads((pruned / "config.json").read_text(encoding="utf-8"))
    document[RECOVERY_KEY] = [*document.get(RECOVERY_KEY, ()), step.model_dump(mode="json")]
    (folder / "config.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _write_card(pruned: Path, folder: Path) -> None:
    """The card that the start has not: as `lop apply` writes it, or, where no plan is known, a short one."""
    plan = PruningPlan.load(folder / PLAN_NAME) if (folder / PLAN_NAME).is_file() else None
    base = base_of(pruned, plan, is_pruned=True)
    if plan is None:
        how = "`lop.load_pruned(FOLDER)` loads it, and `lop inspect FOLDER` says what its layers have."
        write_rewritten_card(folder, base, "recovered", [how])
    else:
        config = load_config(folder)
        write_card(folder, base, plan, config, layer_shapes(config))


def _add_to_card(folder: Path, report: dict[str, Any]) -> None:
    """A section of a card of ours; what somebody else wrote stays as it is."""
    card = folder / CARD_NAME
    if not card.is_file() or MARK not in (text := card.read_text(encoding="utf-8")):
        return
    lines = ["", "## Recovery", ""]
    if report["written"] == "start":
        lines.append(f"`lop recover` wrote the weights that it began with: {report['why']}.")
    else:
        losses = " + ".join(f"{weight:g} {loss}" for loss, weight in report["recipe"]["losses"].items())
        lines.append(f"Trained by `lop recover` ({report['recipe']['mode']}; {losses}; {report['best_step']} steps).")
    for part in ("selection", "validation"):
        if part in report:
            found = [report[part][when]["percent_of_dense"] for when in ("before", "after")]
            shown = [f"{x['percent']:.1f}% ({x['interval'][0]:.1f} to {x['interval'][1]:.1f})" for x in found]
            lines.append(
                f"- {part}, {report[part]['answers']:,} answers: {found[0]['of']} was {shown[0]} of the dense model's, "
                f"now {shown[1]}; 90% intervals."
            )
    lines.append(f"\nAll of it: [{REPORT_NAME}]({REPORT_NAME}).")
    card.write_text(text.rstrip("\n") + "\n" + "\n".join(lines) + "\n", encoding="utf-8")
