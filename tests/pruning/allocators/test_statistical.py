"""The formulas of the statistical allocators, on numbers worked out by hand."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pruning.allocators.ecoflap import allocate_ecoflap, kept_parameters
from pruning.allocators.flap import allocate_flap, channels_above_global_cut, z_scores
from pruning.allocators.llm_pruner import allocate_llm_pruner, pruned_range
from pruning.allocators.owl import allocate_owl, owl_retentions
from pruning.allocators.shortgpt import allocate_shortgpt
from pruning.allocators.wanda_sp import allocate_wanda_sp
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.measuring.statistics import ModelStatistics, StatisticsKind
from tests.pruning.made_up import at_most, made_up_anatomy, made_up_statistics, widths_of


def statistics_with(
    anatomy: ModelAnatomy, kind: StatisticsKind, **arrays: Sequence[Sequence[float]] | Sequence[float]
) -> ModelStatistics:
    """Made-up statistics, of which the named arrays are given: [L][W] by channel, or [L] by layer."""
    base = made_up_statistics(anatomy, kind)
    given: dict[str, NDArray[np.float64]] = {}
    for name, values in arrays.items():
        if name in base.arrays:
            given[name] = np.array(values, dtype=np.float64)
        else:
            given |= {f"layers.{i}.{name}": np.array(row, dtype=np.float64) for i, row in enumerate(values)}
    return ModelStatistics(kind, base.fingerprint, {**base.arrays, **given})


class TestWandaSp:
    def test_mean_weight_times_input_norm(self) -> None:
        anatomy = made_up_anatomy([4, 4], per_channel=1)
        statistics = statistics_with(
            anatomy,
            StatisticsKind.ACTIVATIONS,
            down_mean_abs=[[1, 2, 3, 4], [1, 1, 1, 1]],
            ffn_second_moment=[[100.0, 9.0, 1.0, 0.25], [1.0, 2.0, 3.0, 4.0]],  # scores 10 6 3 2, and 1 1.4 1.7 2
        )
        allocation = allocate_wanda_sp(anatomy, statistics, at_most(anatomy, 4, round_to=1))
        assert widths_of(anatomy, allocation) == [2, 2]
        assert allocation.ranking is not None
        assert [order.tolist() for order in allocation.ranking.ffn] == [[0, 1, 2, 3], [3, 2, 1, 0]]


class TestFlap:
    def test_z_scores(self) -> None:
        # Mean 4, squared deviations 9 + 1 + 1 + 9 = 20 over 3.
        np.testing.assert_allclose(
            z_scores(np.array([1.0, 3.0, 5.0, 7.0])), np.array([-3, -1, 1, 3]) / math.sqrt(20 / 3)
        )
        assert z_scores(np.array([2.0, 2.0])).tolist() == [0.0, 0.0]
        assert z_scores(np.array([5.0])).tolist() == [0.0]

    def test_one_cut_over_all_layers_each_channel_weighed_by_its_parameters(self) -> None:
        anatomy = made_up_anatomy([3, 3], per_channel=2)
        scores = [np.array([3.0, 1.0, -2.0]), np.array([2.0, 0.0, -1.0])]  # order: 3 2 1 0 -1 -2
        assert channels_above_global_cut(anatomy, scores, 6) == [2, 1]
        assert channels_above_global_cut(anatomy, scores, 7) == [2, 1]
        assert channels_above_global_cut(anatomy, scores, 8) == [2, 2]
        assert channels_above_global_cut(anatomy, scores, 0) == [0, 0]
        assert channels_above_global_cut(anatomy, scores, 100) == [3, 3]

    def test_variance_times_squared_norm_decides_and_biases_are_paid_for(self) -> None:
        anatomy = made_up_anatomy([4, 4], per_channel=30)  # D = 10: a bias costs a third of a channel
        statistics = statistics_with(
            anatomy,
            StatisticsKind.ACTIVATIONS,
            ffn_variance=[[1, 1, 1, 1], [8, 0, 4, 0]],
            down_norm=[[1, 2, 3, 4], [1, 1, 1, 1]],  # scores 1 4 9 16, and 8 0 4 0
            ffn_mean=[[0.5, 0, 0, 0], [0, 0.25, 0, 0]],
        )
        # z: -.99 -.53 .23 1.30 and 1.31 -.78 .26 -.78. Four of eight are above -.53: two in each layer.
        allocation = allocate_flap(anatomy, statistics, at_most(anatomy, 4 * 30 + 20, round_to=1, compensates=True))
        assert widths_of(anatomy, allocation) == [2, 2]
        # One parameter less, and the last of the four does not fit: .23, in layer 0.
        assert widths_of(
            anatomy, allocate_flap(anatomy, statistics, at_most(anatomy, 4 * 30 + 19, round_to=1, compensates=True))
        ) == [1, 2]
        assert allocation.ranking is not None
        assert allocation.ranking.ffn_means is not None
        assert [order.tolist() for order in allocation.ranking.ffn] == [[3, 2, 1, 0], [0, 2, 1, 3]]
        assert [means.tolist() for means in allocation.ranking.ffn_means] == [[0.5, 0, 0, 0], [0, 0.25, 0, 0]]


class TestLlmPruner:
    @pytest.mark.parametrize(("depth", "expected"), [(32, range(3, 19)), (24, range(2, 14)), (12, range(1, 7))])
    def test_the_studys_middle_layers_scaled_to_the_depth(self, depth: int, expected: range) -> None:
        anatomy = made_up_anatomy([64] * depth)
        assert pruned_range(anatomy, anatomy.ffn_parameters * 9 // 10, [8] * anatomy.num_layers) == expected

    def test_the_range_widens_to_later_layers_then_to_earlier_ones_before_its_layers_starve(self) -> None:
        anatomy = made_up_anatomy([100] * 12, per_channel=1)
        # Six layers of 12 at a fifth leave 6 * 100 + 6 * 20 = 720.
        assert pruned_range(anatomy, 720, [8] * anatomy.num_layers) == range(1, 7)
        assert pruned_range(anatomy, 719, [8] * anatomy.num_layers) == range(1, 8)
        assert pruned_range(anatomy, 5 * 100 + 7 * 20 - 1, [8] * anatomy.num_layers) == range(1, 9)
        assert pruned_range(anatomy, 100 + 11 * 20, [8] * anatomy.num_layers) == range(1, 12)
        assert pruned_range(anatomy, 100 + 11 * 20 - 1, [8] * anatomy.num_layers) == range(12)
        assert pruned_range(anatomy, 0, [8] * anatomy.num_layers) == range(12)
        deep = made_up_anatomy([100] * 32, per_channel=1)
        assert pruned_range(deep, 3 * 100 + 29 * 20 - 1, [8] * deep.num_layers) == range(2, 32)
        # Where a rounding step is more than a fifth, it is what layers must keep.
        assert pruned_range(anatomy, 6 * 100 + 6 * 50, [50] * anatomy.num_layers) == range(1, 7)
        assert pruned_range(anatomy, 6 * 100 + 6 * 50 - 1, [50] * anatomy.num_layers) == range(1, 8)

    @pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.6, 0.7])
    def test_no_layer_starves_beside_dense_ones(self, sparsity: float) -> None:
        anatomy = made_up_anatomy([128] * 12)
        budget = int(anatomy.ffn_parameters * (1 - sparsity))
        allocation = allocate_llm_pruner(
            anatomy, made_up_statistics(anatomy, StatisticsKind.GRADIENTS), at_most(anatomy, budget)
        )
        assert min(widths_of(anatomy, allocation)) >= 24  # a fifth of 128, rounded down to a step
        assert widths_of(anatomy, allocation)[0] == 128
        assert budget - sum(widths_of(anatomy, allocation)) * 30 < 8 * 30

    def test_one_ratio_in_the_middle_and_nothing_outside(self) -> None:
        anatomy = made_up_anatomy([64, 64, 32, 64, 64, 64, 64, 64], per_channel=1)
        taylor = [list(range(x.ffn_width)) for x in anatomy.layers]
        statistics = statistics_with(anatomy, StatisticsKind.GRADIENTS, ffn_taylor=taylor)
        # Layers 1 to 4 of 8, 224 channels, keep half: 112.
        allocation = allocate_llm_pruner(
            anatomy, statistics, at_most(anatomy, anatomy.ffn_parameters - 112, round_to=8)
        )
        assert widths_of(anatomy, allocation) == [64, 32, 16, 32, 32, 64, 64, 64]
        assert allocation.ranking is not None
        assert allocation.ranking.ffn[2].tolist() == list(range(31, -1, -1))


class TestOwl:
    def test_outliers_move_retention_by_at_most_two_lambda(self) -> None:
        # Rescaled to [0, .16]: 0, .04, .16; mean .0667.
        retentions = owl_retentions(np.array([0.1, 0.2, 0.5]), np.ones(3), 0.5)
        np.testing.assert_allclose(retentions, 0.5 + np.array([0, 0.04, 0.16]) - 0.2 / 3)
        weighted = owl_retentions(np.array([0.1, 0.5]), np.array([3.0, 1.0]), 0.5)
        np.testing.assert_allclose(weighted, [0.46, 0.62])  # 3 * .46 + .62 = 4 * .5
        assert owl_retentions(np.array([0.1, 0.1]), np.ones(2), 0.3).tolist() == [0.3, 0.3]

    def test_widths(self) -> None:
        anatomy = made_up_anatomy([100, 100], per_channel=1)
        statistics = statistics_with(anatomy, StatisticsKind.ACTIVATIONS, outlier_ratio=[0.05, 0.01])
        assert widths_of(anatomy, allocate_owl(anatomy, statistics, at_most(anatomy, 100, round_to=1))) == [58, 42]
        assert widths_of(anatomy, allocate_owl(anatomy, statistics, at_most(anatomy, 192, round_to=1))) == [
            100,
            92,
        ]  # 1.04 is all there is


class TestEcoflap:
    def test_scores_share_what_the_largest_sparsity_leaves(self) -> None:
        # p = .5, p_max = .6: 40 each at least; the other 30 go 2 : 1 : 0.
        assert kept_parameters([100, 100, 100], np.array([2.0, 1.0, 0.0]), 150) == [60, 50, 40]

    def test_full_groups_leave_the_rest_to_the_others(self) -> None:
        # p = .1: 80 each, 30 left. The first gets 29.4 -> 30 but has room for 20, the others .3 -> 1; then 8 by halves.
        assert kept_parameters([100, 100, 100], np.array([98.0, 1.0, 1.0]), 270) == [100, 85, 85]

    def test_rounding_up_is_taken_back_from_the_widest(self) -> None:
        # 40 each; 31 left in shares of 10.33 -> 11 each: 2 too many, from the first of the widest.
        assert kept_parameters([100, 100, 100], np.ones(3), 151) == [49, 51, 51]
        # p = .2: 70 each; 30 left in shares of 29.4 -> 30 and twice .3 -> 1: 2 too many, from the widest.
        assert kept_parameters([100, 100, 100], np.array([98.0, 1.0, 1.0]), 240) == [98, 71, 71]

    @given(st.lists(st.tuples(st.integers(1, 10**9), st.floats(0, 1e6)), min_size=1, max_size=9), st.fractions(0, 1))
    def test_exactly_the_budget_and_never_more_than_a_group_has(
        self, groups: list[tuple[int, float]], share: Fraction
    ) -> None:
        sizes = [size for size, _ in groups]
        budget = int(sum(sizes) * share)
        kept = kept_parameters(sizes, np.array([score for _, score in groups]), budget)
        assert sum(kept) == budget
        assert all(0 <= k <= size for k, size in zip(kept, sizes, strict=True))

    def test_without_scores_all_share_alike(self) -> None:
        assert kept_parameters([100, 100], np.zeros(2), 100) == [50, 50]
        assert kept_parameters([100, 100], np.zeros(2), 0) == [0, 0]
        assert kept_parameters([100, 50], np.array([0.0, 1.0]), 150) == [100, 50]

    def test_widths(self) -> None:
        anatomy = made_up_anatomy([100, 100, 100], per_channel=10)
        statistics = statistics_with(anatomy, StatisticsKind.ZEROTH_ORDER, ffn_zeroth_order=[2, 1, 0])
        assert widths_of(anatomy, allocate_ecoflap(anatomy, statistics, at_most(anatomy, 1500, round_to=1))) == [
            60,
            50,
            40,
        ]


class TestShortGpt:
    def test_the_least_influential_go_first_and_one_goes_in_part(self) -> None:
        anatomy = made_up_anatomy([64] * 4, per_channel=1)
        statistics = statistics_with(anatomy, StatisticsKind.ACTIVATIONS, block_influence=[0.9, 0.1, 0.3, 0.2])
        for removed, expected in {
            0: [64, 64, 64, 64],
            8: [64, 56, 64, 64],
            56: [64, 8, 64, 64],
            57: [64, 8, 64, 56],
            100: [64, 8, 64, 16],
            168: [64, 8, 8, 8],
            224: [8, 8, 8, 8],
        }.items():
            assert (
                widths_of(anatomy, allocate_shortgpt(anatomy, statistics, at_most(anatomy, 256 - removed, round_to=8)))
                == expected
            )
