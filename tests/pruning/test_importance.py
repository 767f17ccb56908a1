"""The registered ranking's scores: weight norm times activation size."""

from pathlib import Path

import torch

from pruning.anatomy_reader import read_anatomy
from pruning.batches import make_batches
from pruning.checkpoint import load_model, load_processor
from pruning.conversations import Conversation
from pruning.importance import channel_scores
from pruning.ranking import Ranking
from pruning.statistics import StatisticsKind, measure_statistics


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
