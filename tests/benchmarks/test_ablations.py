"""The budgets that parts of the predictor are left out at, and the rows that say what that does."""

from collections import Counter
from typing import Any, cast

import numpy as np
import pytest

from benchmarks import ablations
from benchmarks.subject import REFERENCE
from policy_model.choosing import Parts
from policy_model.policy_config import PolicyConfig
from policy_model.predictor import Predictor
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Site, Sublayer
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.planning.workload import Workload


@pytest.fixture(scope="module")
def anatomy() -> ModelAnatomy:
    return read_anatomy(REFERENCE / "model")


def test_budgets_are_of_every_kind_and_all_of_them_bind(anatomy: ModelAnatomy) -> None:
    asked = ablations.budgets(anatomy)
    counts = Counter(x.kind for x in asked)
    assert set(counts.values()) == {ablations.NUM_BUDGETS}
    assert len(counts) == 7
    assert Counter(len(x.limits.limits) for x in asked) == {1: 48, 2: 24, 3: 12}
    for x in asked:
        assert all(limit.least <= limit.most < limit.dense for limit in x.limits.limits)
        assert ablations.LEAST_REMOVED <= x.removed <= ablations.MOST_REMOVED
    assert [x.removed for x in ablations.budgets(anatomy)] == [x.removed for x in asked]


def test_a_stair_is_a_tile_of_channels(anatomy: ModelAnatomy) -> None:
    stairs = ablations.StairsLatency(anatomy, Workload(), seed=0)
    first, second = Site(0, Sublayer.FFN), Site(1, Sublayer.FFN)
    times = stairs.site_ns(second, np.array([1, 40, 41, 80, 81]))
    assert times[0] == times[1] < times[2] == times[3] < times[4]
    assert stairs.site_ns(first, np.array([64]))[0] != stairs.site_ns(second, np.array([64]))[0]


def test_untrained_weights_are_always_the_same_and_score_nothing() -> None:
    first, again = (ablations.untrained_policy(PolicyConfig(width=16)) for _ in range(2))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not first["score"].any()
    assert first["read_decision.weight"].any()


class StubPredictor:
    """Stands for a predictor whose parts cost so much KL each when they are left out."""

    config = PolicyConfig()

    def __init__(self, kl: float = 1.0) -> None:
        self.kl = kl

    def with_parts(self, parts: Parts, policy: Any = None) -> "StubPredictor":
        measured = 1.0 if parts.ways else 3.0
        return StubPredictor((1.0 if parts.walkers else 1.04) * (1.5 if policy else 1.0) * measured)


def test_rows_are_ratios_to_the_whole_planner(anatomy: ModelAnatomy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablations, "_predicted_kl", lambda predictor, *_: predictor.kl)
    rows, summary = ablations.measure(cast("Predictor", StubPredictor()), anatomy)
    assert len(rows) == 7 * (len(ablations.PARTS) + len(ablations.UNTRAINED))
    assert summary["policy_alone_vs_full"] == pytest.approx(3.0 * 1.04)
    assert summary["untrained_policy_alone_vs_full"] == pytest.approx(1.5 * 3.0 * 1.04)
    assert summary["ablations_vs_full"]["no_ways"] == pytest.approx(3.0)
    assert summary["ablations_as_good_as_full"]["no_policy"] == 1.0
    assert {row["kl_vs_full"] for row in rows if row["variant"] == ablations.FULL} == {1.0}
