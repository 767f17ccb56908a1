"""From a cut checkpoint to one that is as good as it can be made, and never a worse one.

The selection part decides: a training whose best weights do not beat the start there is thrown away, and the start is
what is written. The validation part is looked at twice, at the start and in the end, and decides nothing.
"""

import hashlib
import json
import resource
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pruning.anatomy.decoder_view import decoder_view
from pruning.atomic_file import beside
from pruning.checkpoints.headers import weights_sha256
from pruning.checkpoints.loading import load_model, load_processor
from pruning.checkpoints.stored_dtype import stored_dtype
from pruning.cutting.streaming.lock import locked_file
from pruning.cutting.streaming.place import check_place, folders_above
from pruning.data.batches import Batch
from pruning.data.conversations import Conversation, calibration_id
from pruning.planning.plan import PruningPlan, distillation_step
from recovery.checks import checked_plan
from recovery.judged_training import judged_training, training_batches
from recovery.judging import Judge, Part, part_of, rough_length
from recovery.kinds import Kinds
from recovery.layer_map import matched_layers, skipped_layers
from recovery.recipe import Recipe
from recovery.report import report_of
from recovery.state import Progress, StateFolder
from recovery.teacher import DEFAULT_CACHE_BYTES, Teacher
from recovery.trained import Trained, projectors_of
from recovery.training import Watcher
from recovery.writing import check_output_room, write_recovered

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pruning.checkpoints.processor import Processor

Stage = Callable[[str], Callable[[int, int], None]]


@dataclass(frozen=True)
class Data:
    """What a recovery is given: conversations that are trained on, that decide, and that only report."""

    train: list[Conversation]
    selection: list[Conversation]
    validation: list[Conversation] = field(default_factory=list)
    kinds: Kinds | None = None

    def judged_on(self, processor: "Processor") -> list[Part]:
        """The selection part, and the validation part if there is one; raises as `part_of`."""
        named = {"selection": self.selection, "validation": self.validation}
        return [part_of(name, found, processor, self.kinds) for name, found in named.items() if found]


@dataclass(frozen=True)
class Ears:
    """Who is told of progress: `stage(label)(done, total)` before training, the watcher during it, notes any time."""

    stage: Stage = lambda _label: lambda _done, _total: None
    watcher: Watcher = field(default_factory=Watcher)
    on_note: Callable[[str], None] = lambda _text: None


def state_folder(out: Path) -> Path:
    """Where a training of the output `out` is kept until that is whole."""
    return beside(out, ".recovering")


def recover(
    pruned: Path,
    teacher: Path,
    data: Data,
    recipe: Recipe,
    out: Path,
    *,
    device: torch.device | None = None,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
    ears: Ears | None = None,
) -> dict[str, Any]:
    """Train the checkpoint in `pruned`, write the better of start and result to the new folder `out`; the report.

    A run that was killed goes on from its last state when it is run again with the same arguments.

    Args:
        teacher: the dense checkpoint's folder.
        cache_bytes: of the dense model's states on disk, at most.

    Raises:
        CheckpointError: a folder is damaged, not pruned, quantised; `out` exists or cannot be written.
        FingerprintMismatchError: the teacher is another model.
        DatasetError: conversations cannot be used.
        InputError: the recipe does not fit the model.
        MissingExtraError: LoRA without peft.
    """
    ears, device = ears or Ears(), device or torch.device("cpu")
    check_place(out, source=pruned)
    plan = checked_plan(pruned, teacher)
    check_output_room(pruned, out)
    lock = beside(out, ".recovering.lock")
    with folders_above(out), locked_file(lock, out):
        try:
            return _recover(pruned, teacher, plan, data, recipe, out, device, cache_bytes, ears)
        finally:
            lock.unlink(missing_ok=True)


def _recover(
    pruned: Path,
    teacher_folder: Path,
    plan: PruningPlan | None,
    data: Data,
    recipe: Recipe,
    out: Path,
    device: torch.device,
    cache_bytes: int,
    ears: Ears,
) -> dict[str, Any]:
    processor = load_processor(pruned)
    ordered = sorted(data.train, key=rough_length)
    batches = training_batches(ordered, processor, recipe)
    parts = data.judged_on(processor)
    dtype = stored_dtype(pruned)
    model = load_model(pruned, dtype=torch.float32).to(device)
    dense = load_model(teacher_folder, dtype=torch.float32).to(device)
    recipe = recipe.completed(
        removed=1 - _decoder_parameters(model) / _decoder_parameters(dense),
        width=int(model.config.get_text_config(decoder=True).hidden_size),
        sees=bool(projectors_of(model)),
    )
    layers = matched_layers(recipe.hidden_layers, len(decoder_view(model).layers), skipped_layers(model))
    # The weights follow from these; the number of steps, where minutes decide it, is in the state.
    sources = {
        "pruned": weights_sha256(pruned),
        "teacher": weights_sha256(teacher_folder),
        "train": calibration_id(ordered),
        "selection": calibration_id(data.selection),
        "recipe": recipe.key,
        "device": device.type,
    }
    key = hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()
    folder = StateFolder(state_folder(out), key)
    judges = [Judge(dense, part, on_batch=ears.stage(f"dense model, {part.name}")) for part in parts]
    trained = Trained(model, recipe)
    teacher = Teacher(
        dense,
        batches,
        recipe,
        layers=layers,
        folder=folder.teacher,
        cache_bytes=cache_bytes,
        on_note=ears.on_note,
        on_batch=ears.stage("dense model, training data"),
    )
    del dense
    done = judged_training(
        trained, batches, teacher, recipe, judges, layers=layers, dtype=dtype, folder=folder, watcher=ears.watcher
    )
    progress, is_recovered = done.progress, done.is_recovered
    facts = _facts(pruned, teacher_folder, sources, data, batches, progress)
    report = report_of(recipe, progress, done.parts, is_recovered=is_recovered, facts=facts)
    step = distillation_step({**sources, "recipe": recipe.document(), "steps": progress.best_step})
    written = trained.finish() if is_recovered else None
    write_recovered(pruned, out, report, plan=plan, step=step, model=written, dtype=dtype)
    shutil.rmtree(state_folder(out), ignore_errors=True)
    return report


def _facts(
    pruned: Path,
    teacher: Path,
    sources: dict[str, str],
    data: Data,
    batches: list[Batch],
    progress: Progress,
) -> dict[str, Any]:
    # Linux counts in KiB, macOS in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "data": {
            "pruned": str(pruned),
            "dense": str(teacher),
            "conversations": len(data.train),
            "answers": sum(len(batch.spans) for batch in batches),
            "tokens": sum(int(batch.inputs["attention_mask"].sum()) for batch in batches),
            "selection_conversations": len(data.selection),
            "validation_conversations": len(data.validation),
        },
        "sources": sources,
        "training_seconds": round(progress.seconds, 1),
        "trained_tokens": progress.tokens,
        "peak_memory_bytes": peak,
    }


def _decoder_parameters(model: "PreTrainedModel") -> int:
    return sum(p.numel() for layer in decoder_view(model).layers for p in layer.parameters())
