"""Accuracy by exact match: a turn counts only if every answer token, the end token included, is right.

Teacher-forced, which for a whole answer is the same as greedy decoding given the true history.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch

from reference.batches import Batch, Encoder, pairs_of
from reference.dataset import Split, sample_split
from reference.forward import Decoder, VisionLanguageModel, answer_logits, decoder_of, turns_right

_CHUNK = 50


@dataclass(frozen=True)
class EvaluationSet:
    """Encoded conversations and the kind of each of their turns."""

    batches: list[Batch]
    kinds: list[list[list[str]]]


def load_split(encoder: Encoder, split: Split, seed: int, count: int | None = None) -> EvaluationSet:
    """The conversations of a split, exactly as they are on disk."""
    conversations, pictures = sample_split(split, seed, count)
    batches, kinds = [], []
    for start in range(0, len(conversations), _CHUNK):
        part = conversations[start : start + _CHUNK]
        batches.append(encoder.batch(np.stack(pictures[start : start + _CHUNK]), [pairs_of(item) for item in part]))
        kinds.append([[turn.kind for turn in item.turns] for item in part])
    return EvaluationSet(batches, kinds)


@torch.no_grad()
def accuracy(model: VisionLanguageModel, data: EvaluationSet, decoder: Decoder | None = None) -> dict[str, float]:
    """Share of turns answered exactly, per kind and over `all`."""
    run = decoder or decoder_of(model)
    hits: dict[str, list[bool]] = defaultdict(list)
    for batch, kinds in zip(data.batches, data.kinds, strict=True):
        right, asked = turns_right(answer_logits(model, run, batch), batch)
        for row, names in enumerate(kinds):
            for turn, kind in enumerate(names):
                if turn < asked.shape[1] and bool(asked[row, turn]):
                    hits[kind].append(bool(right[row, turn]))
    everything = [hit for of_kind in hits.values() for hit in of_kind]
    shares = {kind: sum(of_kind) / len(of_kind) for kind, of_kind in sorted(hits.items())}
    return {"all": sum(everything) / len(everything), **shares}
