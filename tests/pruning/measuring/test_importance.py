"""The registered ranking's scores: weight norm times activation size."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.loading import load_model, load_processor
from pruning.data.batches import make_batches
from pruning.data.conversations import Conversation
from pruning.measuring.importance import channel_scores, group_scores, ranking_of
from pruning.measuring.statistics import StatisticsKind, measure_statistics
from pruning.planning.ranking import Ranking
from tests.pruning.made_up import made_up_anatomy, made_up_statistics


def test_scores_are_weight_norm_times_activation_size(checkpoint: Path, conversations: list[Conversation]) -> None:
    processor, model = load_processor(checkpoint), load_model(checkpoint)
    batches = make_batches(conversations, processor, batch_size=3)
    scores = channel_scores(measure_statistics(StatisticsKind.ACTIVATIONS, model, batches))
    # The same by another way: real activations, row by row without padding.
    down = model.get_decoder().layers[1].mlp.down_proj
    seen: list[torch.Tensor] = []
    handle = down.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with torch.inference_mode():
        for batch in make_batches(conversations, processor, batch_size=1):
            model(**batch.inputs)
    handle.remove()
    inputs = torch.cat([x[0] for x in seen]).double()
    expected = down.weight.double().norm(dim=0) * inputs.square().mean(dim=0).sqrt()
    torch.testing.assert_close(torch.from_numpy(scores[1]), expected, rtol=1e-4, atol=1e-8)
    order = Ranking.from_scores(read_anatomy(checkpoint), scores).ffn[1]
    assert scores[1][order[0]] == scores[1].max()
    assert scores[1][order[-1]] == scores[1].min()


def test_a_group_scores_the_sum_over_the_channels_of_its_query_heads() -> None:
    """Four heads of 8 channels in two groups: 16 channels each, the first of root mean square 3, the second of 2."""
    anatomy = made_up_anatomy([8, 8])
    statistics = made_up_statistics(anatomy, StatisticsKind.ACTIVATIONS)
    assert group_scores(statistics, anatomy) is None
    assert ranking_of(statistics, anatomy).kv_groups is None
    norms, moments = np.repeat([1.0, 2.0], 16), np.repeat([9.0, 4.0], 16)
    arrays = {f"layers.{i}.out_norm": norms for i in range(2)}
    arrays |= {f"layers.{i}.attention_second_moment": moments for i in range(2)}
    statistics = replace(statistics, arrays={**statistics.arrays, **arrays})
    scores = group_scores(statistics, anatomy)
    assert scores is not None
    assert [x.tolist() for x in scores] == [[16 * 3.0, 16 * 4.0]] * 2
    ranking = ranking_of(statistics, anatomy)
    assert ranking.kv_groups is not None
    assert [order.tolist() for order in ranking.kv_groups] == [[1, 0]] * 2
    added = {f"layers.{i}.group_contribution": np.array([0.3, 0.2]) for i in range(2)}
    ranking = ranking_of(replace(statistics, arrays={**statistics.arrays, **added}), anatomy)
    assert ranking.kv_groups is not None  # what a group adds says more than its columns, where it was measured
    assert [order.tolist() for order in ranking.kv_groups] == [[0, 1]] * 2
