"""Searches of FFN widths, KV groups and skips at once, on a made-up KL in which sub-layers interact."""

from collections.abc import Sequence
from statistics import geometric_mean

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mcts.search import SharedKnowledge, TargetSearch
from mcts.sensitivity import scan_sensitivity
from mcts.settings import SearchSettings
from mcts.targets import SearchTarget
from pruning.allocators.additive_dp import cost_to_go
from pruning.allocators.uniform import uniform_choice
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.checkpoints.anatomy_reader import anatomy_of
from pruning.measuring.metrics import Metrics
from pruning.planning.axis_spaces import SpaceName, coarse_space
from pruning.planning.scope import Scope
from pruning.planning.space import Choice, Space
from pruning.planning.target import decoder_parameter_limits
from tests.mcts.landscapes import metrics_of
from tests.policy_model.test_joint_spaces import true_kl
from values.surrogate import ROUGHNESSES, Kernel, ScoredChoice, fit_surrogate, retentions

KEPT = (0.7, 0.55, 0.4)
"""Of the decoder's parameters."""


@pytest.fixture(scope="module")
def anatomy() -> ModelAnatomy:
    """Six layers of 64 channels and four KV groups."""
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=50,
    )
    with torch.device("meta"):
        return anatomy_of(LlamaForCausalLM(config))


@pytest.fixture(scope="module")
def space(anatomy: ModelAnatomy) -> Space:
    return coarse_space(anatomy, SpaceName.ALL, num_levels=4)


def test_the_search_beats_equal_cuts_and_the_additive_program(anatomy: ModelAnatomy, space: Space) -> None:
    def score(choices: Sequence[Choice]) -> list[Metrics]:
        return [metrics_of(true_kl(anatomy, space.architecture(choice))) for choice in choices]

    def kl(choice: Sequence[int]) -> float:
        return true_kl(anatomy, space.architecture(tuple(choice)))

    sensitivity = scan_sensitivity(space, score)
    shared = SharedKnowledge(sensitivity, [], retentions(space))
    settings = SearchSettings(
        budgets=(1,), scope=Scope.DECODER, axes=SpaceName.ALL, num_evaluations=40, num_levels=4, parallel_leaves=1
    )
    to_uniform, to_additive = [], []
    for index, share in enumerate(KEPT):
        limits = decoder_parameter_limits(anatomy, space, int(share * anatomy.decoder_parameters))
        spare = int(limits.spare[0])
        added = limits.fit(cost_to_go(limits.table, sensitivity, spare).best_choice(spare), -sensitivity)
        target = SearchTarget(f"{share:g}", limits.limits[0].most, None)
        found = TargetSearch(limits, target, score, settings, shared, index=index).run()
        assert (limits.slack(found.choice) >= 0).all()
        to_uniform.append(kl(found.choice) / kl(uniform_choice(limits).tolist()))
        to_additive.append(kl(found.choice) / kl(added.tolist()))
    assert max(to_additive) <= 1.0
    assert geometric_mean(to_additive) < 0.95
    assert max(to_uniform) < 0.8


def test_the_surrogate_learns_that_a_skip_beside_a_skip_costs_more_than_their_sum(
    anatomy: ModelAnatomy, space: Space
) -> None:
    """Of pairs that it has seen only among other cuts; of a KL that adds up it says no such thing."""
    top = np.array(space.top)

    def kl(choice: Choice) -> float:
        return true_kl(anatomy, space.architecture(choice))

    def score(choices: Sequence[Choice]) -> list[Metrics]:
        return [metrics_of(kl(choice)) for choice in choices]

    alone = {n: kl(_skipping(space, n)) for n in range(1, space.num_decisions)}
    rng = np.random.default_rng(0)
    seen = {_skipping(space, n) for n in alone}
    while len(seen) < 260:
        choice = np.where(rng.random(len(top)) < 0.35, rng.integers(space.counts), top)
        n = int(rng.integers(1, len(top) - 1))
        choice[[n, n + 1]] = 0
        seen.add(tuple(choice.tolist()))
    pairs = [(n, n + 1) for n in range(1, len(top) - 1)]
    seen -= {_skipping(space, *pair) for pair in pairs}

    def excess(of: dict[Choice, float]) -> float:
        """Log of what pairs cost over the sum of what their halves do, as the surrogate has it; mean over pairs."""
        sensitivity = scan_sensitivity(space, score)
        samples = [ScoredChoice(0, choice, float(np.log(value))) for choice, value in sorted(of.items())]
        kernel = Kernel(sensitivity, ROUGHNESSES[0], retentions(space))
        surrogate = fit_surrogate(kernel, samples, target=0)

        def mean(*skipped: int) -> float:
            return float(surrogate.means(np.array([_skipping(space, *skipped)]))[0])

        return float(np.mean([mean(a, b) - np.logaddexp(mean(a), mean(b)) for a, b in pairs]))

    found = excess({c: kl(c) for c in seen})
    added = excess({c: sum(kl(_alone(space, n, k)) for n, k in enumerate(c)) for c in seen})
    truth = np.mean([np.log(kl(_skipping(space, a, b)) / (alone[a] + alone[b])) for a, b in pairs])
    assert truth > 0.3
    assert found > 0.5 * truth
    assert found > added + 0.2


def _skipping(space: Space, *decisions: int) -> Choice:
    return tuple(0 if n in decisions else k for n, k in enumerate(space.top))


def _alone(space: Space, n: int, k: int) -> Choice:
    return (*space.top[:n], k, *space.top[n + 1 :])
