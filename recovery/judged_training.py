"""A training with what it is judged by: the part that decides first, what only reports after it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pruning.data.batches import BatchStream
from pruning.data.conversations import Conversation
from pruning.data.remade_inputs import PictureRoom
from recovery.checks import check_trains_something
from recovery.judging import PICTURE_BYTES, Judge
from recovery.passes import Passes
from recovery.processes import ALONE, Processes
from recovery.recipe import Recipe
from recovery.report import JudgedPart
from recovery.state import Progress, StateFolder
from recovery.teacher import Teacher
from recovery.trained import Trained
from recovery.training import Training, TrainingBatches, Watcher

if TYPE_CHECKING:
    from pruning.checkpoints.processor import Processor

_ROWS = 64
"""Of a batch, at most."""


@dataclass(frozen=True)
class JudgedTraining:
    """A training that is over; `parts` are what the start and the best weights are worth, the deciding part first."""

    progress: Progress
    parts: list[JudgedPart]

    @property
    def is_recovered(self) -> bool:
        """Whether the best weights beat the start where it is decided: else the start is what counts."""
        return self.progress.best_step > 0 and self.parts[0].is_better


def training_batches(
    ordered: Sequence[Conversation], processor: "Processor", recipe: Recipe, processes: Processes = ALONE
) -> TrainingBatches:
    """Of conversations in the order of `recovery.judging.rough_length`.

    Raises DatasetError for one that is unfit, and as `check_trains_something`.

    Of several processes each has its rows of every batch: a step is of the same conversations however many take it.
    """
    check_trains_something(recipe, ordered)
    stream = BatchStream(ordered, processor, batch_size=_ROWS, max_tokens=recipe.batch_tokens)
    room = PictureRoom(PICTURE_BYTES)
    # Of pairs nothing is left but what there is room for: a large part's pictures would fill the memory.
    shares = [
        None if share is None else room.held(*share) for share in stream.shares(processes.number, processes.count)
    ]
    numbers = [number for number, share in enumerate(shares) if share is not None]
    return TrainingBatches([share for share in shares if share is not None], numbers, len(shares))


def judged_training(
    trained: Trained,
    batches: TrainingBatches,
    teacher: Teacher,
    recipe: Recipe,
    judges: Sequence[Judge],
    *,
    layers: Sequence[int],
    dtype: torch.dtype,
    folder: StateFolder,
    watcher: Watcher,
    on_note: Callable[[str], None] = lambda _text: None,
    processes: Processes = ALONE,
) -> JudgedTraining:
    """Train to the end; the model then has the best weights, or some others if nothing was better than its start.

    Args:
        judges: the first one's part decides.
        layers: whose hidden states are compared, as `teacher` has them.
        dtype: of the files that are, or would be, written.
        folder: where a killed run goes on from.
        on_note: told if that was begun by another number of processes, or cannot be read.
    """
    model, before_decoder = trained.model, trained.before_decoder
    judged = [judge.passes(model, trains_before_decoder=before_decoder) for judge in judges]
    starts = [judge.scores(passes) for judge, passes in zip(judges, judged, strict=True)]
    progress = Training(
        trained,
        batches,
        Passes(model, batches.own, layers=layers, trains_before_decoder=before_decoder),
        teacher,
        recipe,
        judge=judges[0],
        selection=judged[0],
        start=starts[0],
        dtype=dtype,
        folder=folder,
        watcher=watcher,
        on_note=on_note,
        processes=processes,
    ).run()
    ends = starts
    if progress.best_step:
        best = folder.load_best(progress.best_step) if processes.is_main else {}
        trained.put(processes.tensors_of_main(best))
        with trained.as_written(dtype):
            ends = [judge.scores(passes) for judge, passes in zip(judges, judged, strict=True)]
    return JudgedTraining(
        progress,
        [
            JudgedPart(judge.part.name, judge.dense_scores, before, after, judge.part.kinds)
            for judge, before, after in zip(judges, starts, ends, strict=True)
        ],
    )
