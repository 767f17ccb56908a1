"""KV groups of the shipped reference model: taking half of them costs least by their scores."""

from dataclasses import replace

import numpy as np

from benchmarks.subject import REFERENCE
from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.arrays import FloatArray
from pruning.checkpoints.anatomy_reader import anatomy_of
from pruning.checkpoints.loading import load_model, load_processor
from pruning.data.batches import make_batches
from pruning.data.conversations import load_conversations
from pruning.measuring.evaluation import ConfigurationEvaluator
from pruning.measuring.importance import channel_scores, group_scores
from pruning.measuring.statistics import StatisticsKind, measure_statistics
from pruning.planning.ranking import Ranking


def test_half_of_the_groups_by_their_scores_loses_less_than_by_chance_and_by_columns() -> None:
    """Scores are of 24 conversations, KL is of eight others."""
    model, processor = load_model(REFERENCE / "model"), load_processor(REFERENCE / "model")
    anatomy = anatomy_of(model)
    scored, judged = (
        make_batches(load_conversations(REFERENCE / "data" / f"{split}.json")[:count], processor, batch_size=8)
        for split, count in (("calibration", 24), ("validation", 8))
    )
    statistics = measure_statistics(StatisticsKind.ACTIVATIONS, model, scored)
    channels = channel_scores(statistics)
    half = Architecture.of({Site(x.index, Sublayer.ATTENTION): Option(x.num_kv_groups // 2) for x in anatomy.layers})

    def kl(scores: list[FloatArray] | None) -> float:
        assert scores is not None
        ranking = Ranking.from_scores(anatomy, channels, group_scores=scores)
        # An evaluator puts its model's groups in its ranking's order, so each needs a model of its own.
        (metrics,) = ConfigurationEvaluator(load_model(REFERENCE / "model"), judged, ranking)([half])
        return metrics.kl

    arrays = {name: x for name, x in statistics.arrays.items() if not name.endswith("group_contribution")}
    columns = group_scores(replace(statistics, arrays=arrays), anatomy)
    rng = np.random.default_rng(0)
    by_chance = [kl([rng.random(x.num_kv_groups) for x in anatomy.layers]) for _ in range(2)]
    found = kl(group_scores(statistics, anatomy))
    assert found < 0.5 * kl(columns)
    assert found < 0.5 * min(by_chance)
