"""A training with what it is judged by: the part that decides first, what only reports after it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pruning.data.batches import Batch, BatchStream
from pruning.data.conversations import Conversation
from recovery.judging import Judge
from recovery.passes import Passes
from recovery.recipe import Recipe
from recovery.report import JudgedPart
from recovery.state import Progress, StateFolder
from recovery.teacher import Teacher
from recovery.trained import Trained
from recovery.training import Training, Watcher

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


def training_batches(ordered: Sequence[Conversation], processor: "Processor", recipe: Recipe) -> list[Batch]:
    """Of conversations in the order of `recovery.judging.rough_length`. Raises DatasetError for one that is unfit."""
    return list(BatchStream(ordered, processor, batch_size=_ROWS, max_tokens=recipe.batch_tokens))


def judged_training(
    trained: Trained,
    batches: Sequence[Batch],
    teacher: Teacher,
    recipe: Recipe,
    judges: Sequence[Judge],
    *,
    layers: Sequence[int],
    dtype: torch.dtype,
    folder: StateFolder,
    watcher: Watcher,
) -> JudgedTraining:
    """Train to the end; the model then has the best weights, or some others if nothing was better than its start.

    Args:
        judges: the first one's part decides.
        layers: whose hidden states are compared, as `teacher` has them.
        dtype: of the files that are, or would be, written.
        folder: where a killed run goes on from.
    """
    model, before_decoder = trained.model, trained.before_decoder
    judged = [judge.passes(model, trains_before_decoder=before_decoder) for judge in judges]
    starts = [judge.scores(passes) for judge, passes in zip(judges, judged, strict=True)]
    progress = Training(
        trained,
        Passes(model, batches, layers=layers, trains_before_decoder=before_decoder),
        teacher,
        recipe,
        judge=judges[0],
        selection=judged[0],
        start=starts[0],
        dtype=dtype,
        folder=folder,
        watcher=watcher,
    ).run()
    ends = starts
    if progress.best_step:
        trained.put(folder.load_best(progress.best_step))
        with trained.as_written(dtype):
            ends = [judge.scores(passes) for judge, passes in zip(judges, judged, strict=True)]
    return JudgedTraining(
        progress,
        [
            JudgedPart(judge.part.name, judge.dense_scores, before, after, judge.part.kinds)
            for judge, before, after in zip(judges, starts, ends, strict=True)
        ],
    )
