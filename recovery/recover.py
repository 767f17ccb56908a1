"""From a cut checkpoint to one that is as good as it can be made, and never a worse one.

The selection part decides: a training whose best weights do not beat the start there is thrown away, and the start is
what is written. The validation part is looked at twice, at the start and in the end, and decides nothing.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pruning.anatomy.decoder_view import decoder_view
from pruning.atomic_file import beside
from pruning.checkpoints.headers import weights_sha256
from pruning.checkpoints.loading import load_model, load_processor
from pruning.checkpoints.stored_dtype import stored_dtype
from pruning.cutting.streaming.lock import locked_file
from pruning.cutting.streaming.place import check_place, folders_above
from pruning.data.conversations import Conversation, calibration_id
from pruning.planning.plan import PruningPlan, distillation_step
from recovery.answer_states import AnswerStates
from recovery.checks import checked_plan
from recovery.judged_training import judged_training, training_batches
from recovery.judging import Judge, Part, part_of, rough_length
from recovery.kinds import Kinds
from recovery.layer_map import matched_layers, skipped_layers
from recovery.peak_memory import peak_memory_bytes
from recovery.precision import dense_dtype
from recovery.processes import ALONE, Processes
from recovery.recipe import Recipe
from recovery.report import report_of
from recovery.state import Progress, StateFolder, check_state_room, state_bytes
from recovery.teacher import DEFAULT_CACHE_BYTES, Teacher
from recovery.trained import Trained
from recovery.training import TrainingBatches, Watcher
from recovery.writing import check_output_room, output_bytes, write_recovered

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pruning.checkpoints.processor import Processor

Stage = Callable[[str], Callable[[int, int], None]]

_IDLE = 0.25
"""Share of empty shares of batches that is worth a word."""


@dataclass(frozen=True)
class Data:
    """What a recovery is given: conversations that are trained on, that decide, and that only report."""

    train: list[Conversation]
    selection: list[Conversation]
    validation: list[Conversation] = field(default_factory=list)
    kinds: Kinds | None = None

    def judged_on(self, processor: "Processor", processes: Processes = ALONE) -> list[Part]:
        """The selection part, and the validation part if there is one; raises as `part_of`."""
        named = {"selection": self.selection, "validation": self.validation}
        return [part_of(name, found, processor, self.kinds, processes) for name, found in named.items() if found]


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
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """Train the checkpoint in `pruned`, write the better of start and result to the new folder `out`; the report.

    A run that was killed goes on from its last state when it is run again with the same arguments.

    Args:
        teacher: the dense checkpoint's folder.
        cache_bytes: of the dense model's states on disk, at most, those of all processes together.
        processes: that were all called with the same arguments, but for `device` and `ears`; the main one writes.

    Raises:
        CheckpointError: a folder is damaged, not pruned, quantised; `out` exists or cannot be written, or its disk has
            no room for it and the training's state.
        FingerprintMismatchError: the teacher is another model.
        DatasetError: conversations cannot be used.
        InputError: the recipe does not fit the model, or processes have other checkpoints, data or recipes.
        MissingExtraError: LoRA without peft.
        ProcessError: another process cannot be reached; mostly it ended.
    """
    ears, device = ears or Ears(), device or torch.device("cpu")
    with ExitStack() as stack:

        def begin() -> PruningPlan | None:
            if not processes.is_main:
                return checked_plan(pruned, teacher)
            check_place(out, source=pruned)
            plan = checked_plan(pruned, teacher)
            check_output_room(pruned, out)
            lock = beside(out, ".recovering.lock")
            stack.enter_context(folders_above(out))
            stack.enter_context(locked_file(lock, out))
            stack.callback(lock.unlink, missing_ok=True)
            return plan

        plan = processes.together(begin)
        ready = processes.together(lambda: _prepared(pruned, teacher, data, recipe, device, processes))
        return _recover(pruned, teacher, plan, data, ready, out, cache_bytes, ears, processes)


@dataclass
class _Prepared:
    """All that a training needs, loaded and checked; `sources` is what its weights follow from."""

    dense: "PreTrainedModel | None"
    trained: Trained
    batches: TrainingBatches
    parts: list[Part]
    recipe: Recipe
    layers: tuple[int, ...]
    dtype: torch.dtype
    sources: dict[str, str]

    def take_dense(self) -> "PreTrainedModel":
        """The dense model, which is then held by who took it alone."""
        dense, self.dense = self.dense, None
        assert dense is not None
        return dense


def _prepared(
    pruned: Path, teacher: Path, data: Data, recipe: Recipe, device: torch.device, processes: Processes
) -> _Prepared:
    processor = load_processor(pruned)
    ordered = sorted(data.train, key=rough_length)
    batches = training_batches(ordered, processor, recipe, processes)
    parts = data.judged_on(processor, processes)
    model = load_model(pruned, dtype=torch.float32).to(device)
    dense = load_model(teacher, dtype=dense_dtype(teacher, device)).to(device)
    recipe = recipe.completed(int(model.config.get_text_config(decoder=True).hidden_size))
    layers = matched_layers(recipe.hidden_layers, len(decoder_view(model).layers), skipped_layers(model))
    # The number of steps, where minutes decide it, is in the state.
    sources = {
        "pruned": weights_sha256(pruned),
        "teacher": weights_sha256(teacher),
        "train": calibration_id(ordered),
        "selection": calibration_id(data.selection),
        "recipe": recipe.key,
        "device": device.type,
    }
    return _Prepared(dense, Trained(model, recipe), batches, parts, recipe, layers, stored_dtype(pruned), sources)


def _recover(
    pruned: Path,
    teacher_folder: Path,
    plan: PruningPlan | None,
    data: Data,
    ready: _Prepared,
    out: Path,
    cache_bytes: int,
    ears: Ears,
    processes: Processes,
) -> dict[str, Any]:
    recipe, layers, batches, trained = ready.recipe, ready.layers, ready.batches, ready.trained
    key = _digest(ready.sources)
    validation = calibration_id(data.validation)
    processes.check_same("checkpoints, data and options", _digest({"key": key, "validation": validation}))
    _note_idle(batches, ears, processes)
    reserved = state_bytes(trained.num_bytes)

    def check_disk() -> None:
        if processes.is_main:
            check_state_room(state_folder(out), trained.num_bytes, output_bytes(pruned))

    processes.together(check_disk)
    folder = _state(out, key, processes)
    dense = ready.take_dense()
    cache = processes.of_share(folder.teacher)
    judges, cache_bytes = [], cache_bytes // processes.count
    for part in ready.parts:
        which = validation if part.name == "validation" else ready.sources["selection"]
        place = cache / "judged" / f"{which}.safetensors"
        kept = AnswerStates(place, most_bytes=cache_bytes, reserved_bytes=reserved)
        label = f"dense model, {part.name}"
        judges.append(Judge(dense, part, on_batch=ears.stage(label), processes=processes, kept=kept))
        cache_bytes -= kept.num_bytes
    teacher = Teacher(
        dense,
        batches.own,
        recipe,
        layers=layers,
        folder=cache,
        cache_bytes=cache_bytes,
        local_count=processes.local_count,
        reserved_bytes=reserved,
        on_note=ears.on_note,
        on_batch=ears.stage("dense model, training data"),
    )
    del dense
    done = judged_training(
        trained,
        batches,
        teacher,
        recipe,
        judges,
        layers=layers,
        dtype=ready.dtype,
        folder=folder,
        watcher=ears.watcher,
        on_note=ears.on_note,
        processes=processes,
    )
    progress, is_recovered = done.progress, done.is_recovered
    facts = _facts(pruned, teacher_folder, ready.sources, data, batches, progress, processes)
    report = report_of(recipe, progress, done.parts, is_recovered=is_recovered, facts=facts)

    def write() -> dict[str, Any]:
        step = distillation_step({**ready.sources, "recipe": recipe.document(), "steps": progress.best_step})
        written = trained.finish() if is_recovered else None
        write_recovered(pruned, out, report, plan=plan, step=step, model=written, dtype=ready.dtype)
        return report

    report = processes.of_main(write)
    processes.local_first(lambda: shutil.rmtree(state_folder(out), ignore_errors=True))
    return report


def _digest(document: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _state(out: Path, key: str, processes: Processes) -> StateFolder:
    """The main process's comes first, then one of each machine: where they share a disk, nobody removes another's."""

    def open_folder() -> StateFolder:
        return StateFolder(state_folder(out), key, processes.count)

    processes.of_main(lambda: open_folder() and None)
    return processes.local_first(open_folder)


def _note_idle(batches: TrainingBatches, ears: Ears, processes: Processes) -> None:
    having = float(processes.summed(np.array([float(len(batches.own))]))[0])
    idle = 1 - having / (batches.count * processes.count)
    if idle > _IDLE and processes.is_main:
        ears.on_note(
            f"of the {processes.count} processes' shares of {batches.count} batches {idle:.0%} are empty, as batches "
            "have fewer rows than there are processes: raise --batch-tokens"
        )


def _facts(
    pruned: Path,
    teacher: Path,
    sources: dict[str, str],
    data: Data,
    batches: TrainingBatches,
    progress: Progress,
    processes: Processes,
) -> dict[str, Any]:
    peaks = processes.each(peak_memory_bytes())
    own = [(len(batch.spans), int(batch.inputs["attention_mask"].sum())) for batch in batches.own]
    answers, tokens = processes.summed(np.array([*own, (0, 0)], dtype=np.float64).sum(axis=0)).astype(int).tolist()
    return {
        "data": {
            "pruned": str(pruned),
            "dense": str(teacher),
            "conversations": len(data.train),
            "answers": answers,
            "tokens": tokens,
            "selection_conversations": len(data.selection),
            "validation_conversations": len(data.validation),
        },
        "sources": sources,
        "training_seconds": round(progress.seconds, 1),
        "trained_tokens": progress.tokens,
        "processes": processes.count,
        "peak_memory_bytes": max(peaks),
        "peak_memory_bytes_by_process": peaks,
    }
