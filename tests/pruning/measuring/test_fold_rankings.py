"""Rankings without a fold are those of statistics that never saw it."""

from pathlib import Path

import numpy as np

from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.loading import load_model, load_processor
from pruning.data.batches import make_batches
from pruning.data.conversations import Conversation
from pruning.measuring.fold_rankings import rankings_without_each
from pruning.measuring.importance import channel_scores, ranking_of
from pruning.measuring.statistics import ModelStatistics, StatisticsKind, measure_statistics


def test_pooled_folds_rank_as_one_pass_over_the_same_conversations(
    checkpoint: Path, conversations: list[Conversation]
) -> None:
    anatomy, processor = read_anatomy(checkpoint), load_processor(checkpoint)

    def measured(used: list[Conversation]) -> tuple[ModelStatistics, int]:
        batches = make_batches(used, processor)
        tokens = sum(int(batch.inputs["attention_mask"].sum()) for batch in batches)
        return measure_statistics(StatisticsKind.ACTIVATIONS, load_model(checkpoint), batches), tokens

    parts = [conversations[:1], conversations[1:3], conversations[3:]]
    folds, tokens = zip(*map(measured, parts), strict=True)
    rankings = rankings_without_each(folds, tokens, anatomy)
    for left_out, ranking in enumerate(rankings):
        rest = [c for fold, part in enumerate(parts) if fold != left_out for c in part]
        whole = measured(rest)[0]
        assert ranking.agrees_with(ranking_of(whole, anatomy))
    everything = measured(conversations)[0]
    differs = [
        not np.allclose(a, b, rtol=1e-3)
        for a, b in zip(channel_scores(everything), channel_scores(measured(parts[2])[0]), strict=True)
    ]
    assert any(differs)  # else nothing could be told apart
    assert len({ranking.sha256 for ranking in rankings}) == 3
