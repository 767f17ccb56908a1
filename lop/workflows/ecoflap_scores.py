"""ECoFLaP's scores of layers (arXiv 2310.02998) on calibration conversations, batch by batch: finished ones are kept,
and gone on with."""

import json
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np

from lop.workflows.compute import load_for_compute
from lop.workflows.measuring import RECIPES
from pruning.arrays import FloatArray
from pruning.atomic_file import replace_file
from pruning.checkpoints.loading import load_processor
from pruning.cutting.rewriting.blocks import Part
from pruning.data.answer_beginnings import first_answer_tokens
from pruning.data.batches import Batch, make_batches
from pruning.data.conversations import Conversation
from pruning.measuring.block_scores import measure_block_scores
from pruning.measuring.statistics import StatisticsKind
from pruning.measuring.zeroth_order_statistics import noise_seed

SCORED_TOKENS = 32
"""Answer tokens of each conversation. The paper's samples are captions, which are shorter; of answers of some hundred
tokens each, most of the time would go to what says little new of the layers."""

BatchScores = dict[str, list[float]]
"""Of the layers of each part, by its name."""

Keep = Callable[[int, Callable[[], BatchScores]], BatchScores]
"""Given the number of a batch and what measures its scores: those, from there or from an earlier run."""


def block_scores(
    folder: Path,
    conversations: Sequence[Conversation],
    parts: Sequence[Part],
    *,
    seed: int,
    num_tokens: int = SCORED_TOKENS,
    keep: Keep = lambda _, measure: measure(),
    on_score: Callable[[int, int], None] | None = None,
) -> dict[Part, FloatArray]:
    """Scores [L] and [V] of the layers of `parts` of the checkpoint in `folder`: sums over batches, each of which has
    directions of its own.

    Args:
        conversations: the first are used, as many and in as large batches as in the paper.
        num_tokens: see `SCORED_TOKENS`; of a chat template that renders turns one by one, of each turn.
        keep: asked for every batch. Where it has all of them, the model is not loaded.
        on_score: told of progress as (done, total).

    Raises:
        InputError: torch has no such device as LOP_TORCH_DEVICE says.
        CheckpointError, DatasetError: the checkpoint or the conversations cannot be used, or a loss is not finite.
    """
    recipe = RECIPES[StatisticsKind.ZEROTH_ORDER]
    batches = scored_batches(folder, conversations[: recipe.num_conversations], num_tokens, recipe.batch_size)
    model = cache(partial(load_for_compute, folder))

    def measured(number: int) -> BatchScores:
        def tell(done: int, total: int) -> None:
            if on_score is not None:
                on_score(number * total + done, len(batches) * total)

        own = noise_seed(seed, number)
        found = measure_block_scores(model(), [batches[number]], parts, seed=own, on_batch=tell)
        return {part.value: scores.tolist() for part, scores in found.items()}

    found = [keep(number, partial(measured, number)) for number in range(len(batches))]
    return {part: np.sum([own[part.value] for own in found], axis=0) for part in parts}


def scored_batches(
    folder: Path, conversations: Sequence[Conversation], num_tokens: int, batch_size: int
) -> list[Batch]:
    """Batches of the first `num_tokens` answer tokens of conversations, short ones first, so that little is padding."""
    processor = load_processor(folder)
    lengths = [0] * len(conversations)
    for row in make_batches(conversations, processor, batch_size=1):
        (number,) = row.conversations
        size = first_answer_tokens(row, num_tokens).inputs["input_ids"].shape[1]
        lengths[number] = max(lengths[number], size)
    ordered = [conversations[number] for number in sorted(range(len(lengths)), key=lengths.__getitem__)]
    return [first_answer_tokens(x, num_tokens) for x in make_batches(ordered, processor, batch_size=batch_size)]


def kept_in(folder: Path) -> Keep:
    """Keeps the scores of batches as files in `folder`, which is there once the first is asked for."""

    def keep(number: int, measure: Callable[[], BatchScores]) -> BatchScores:
        path = folder / f"scores-{number}.json"
        if not path.is_file():
            replace_file(path, json.dumps(measure()).encode())
        found: BatchScores = json.loads(path.read_text(encoding="utf-8"))
        return found

    return keep
