"""The additive program: by hand, by trying all, and against what it answered before."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.allocators.additive import additive_architecture, interpolated_losses
from pruning.anatomy.architecture import Site, Sublayer
from pruning.arrays import FloatArray, IntArray
from pruning.errors import InfeasibleBudgetError, InputError
from pruning.planning.limits import LimitKind, Limits
from pruning.planning.space import Decision, Options, Space
from tests.pruning.made_up_limits import ladders, limit
from tests.pruning.made_up_scans import MadeUpScan, made_up_scan, total_loss

# Layer 0 is dear and layer 1 cheap; memory counts channels, latency is the same up to 16 and dearer in layer 0.
WIDTHS = ((8, 16, 24, 32), (8, 16, 24, 32))
LOSS = np.array([[9.0, 6.0, 3.0, 0.0], [0.3, 0.2, 0.1, 0.0]])


def solved(scan: MadeUpScan, limits: Limits | None = None) -> IntArray:
    """The choice [N] of `limits`, by default the scan's."""
    limits = limits or scan.limits
    choice = limits.space.choice_of(additive_architecture(scan.levels, scan.loss, limits))
    assert choice is not None
    return np.array(choice)


def two_layers(memory: int, latency: int) -> MadeUpScan:
    levels = ladders(*WIDTHS)
    limits = (
        limit(LimitKind.MEMORY_BYTES, memory, 0, *WIDTHS),
        limit(LimitKind.LATENCY_MS, latency, 0, (2, 2, 6, 6), (1, 1, 4, 4)),
    )
    return MadeUpScan(levels, LOSS, Limits(levels, limits))


@pytest.mark.parametrize(
    ("memory", "latency", "expected"),
    [
        # Memory takes most and leaves (32, 24), which is too slow: layer 1 gives, not the dear layer, which is dense.
        (56, 9, [32, 16]),
        (48, 10, [32, 16]),
        # All of memory, but not two layers beyond the stair.
        (64, 9, [32, 16]),
        (64, 10, [32, 32]),
        # Layer 0 cannot go beyond the stair; then it has all up to it, and layer 1 the rest.
        (64, 6, [16, 32]),
        (40, 5, [16, 16]),
    ],
)
def test_by_hand(memory: int, latency: int, expected: list[int]) -> None:
    scan = two_layers(memory, latency)
    assert scan.limits.units_of(solved(scan)) == expected


def test_losses_between_levels_are_linear() -> None:
    levels, space = ladders([8, 32], [8, 16]), ladders([8, 16, 24, 32], [8, 16])
    losses = interpolated_losses(levels, np.array([[3.0, 0.0], [1.0, 0.5]]), space)
    assert losses.tolist() == [[3.0, 2.0, 1.0, 0.0], [1.0, 0.5, 0.0, 0.0]]


def joint(memory: int) -> MadeUpScan:
    """KV groups, with one option more than the FFN and down to none, and an FFN; a byte a channel, 8 a group."""
    attention, ffn = (Site(1, sublayer) for sublayer in (Sublayer.ATTENTION, Sublayer.FFN))
    rows = {attention: [0, 1, 2, 3], ffn: [0, 16, 32]}
    levels = Space(
        tuple(Decision((site,), (Options(np.array(row)),)) for site, row in rows.items()), {attention: 3, ffn: 32}
    )
    fixed = Site(0, Sublayer.ATTENTION)  # which was not scanned: there is nothing to choose
    fine = Space(
        (
            Decision((fixed,), (Options(np.array([1])),)),
            levels.decisions[0],
            Decision((ffn,), (Options(np.arange(0, 33, 8)),)),
        ),
        {fixed: 1, **levels.dense},
    )
    limits = Limits(fine, (limit(LimitKind.MEMORY_BYTES, memory, 0, (8,), (0, 8, 16, 24), tuple(range(0, 33, 8))),))
    return MadeUpScan(levels, np.array([[5.0, 1.0, 0.2, 0.0], [3.0, 2.5, 0.0, 0.0]]), limits)


@pytest.mark.parametrize(("memory", "expected"), [(8, [1, 0, 0]), (16, [1, 1, 0]), (40, [1, 2, 16]), (48, [1, 1, 32])])
def test_decisions_of_several_kinds_by_hand(memory: int, expected: list[int]) -> None:
    """The first group saves 4, the whole FFN 3 and half of it .5: levels are [5, 1, .2, 0] and [3, 2.5, 0]."""
    scan = joint(memory)
    assert scan.limits.units_of(solved(scan)) == expected


def test_other_decisions_than_those_that_were_scanned_are_refused() -> None:
    scan = joint(40)
    with pytest.raises(InputError, match=r"decides what was scanned \(got asked for 2 decisions, scanned 2"):
        additive_architecture(scan.levels, scan.loss, two_layers(56, 9).limits)


def test_a_limit_that_nothing_meets_is_named() -> None:
    with pytest.raises(InfeasibleBudgetError, match=r"latency_ms = 0\.001"):
        two_layers(64, 2)


def test_a_table_of_zeros() -> None:
    scan = two_layers(48, 6)
    zeros = MadeUpScan(scan.levels, np.zeros((2, 4)), scan.limits)
    assert total_loss(scan.limits, zeros.loss, solved(zeros)) == 0


def best_by_trying(limits: Limits, losses: FloatArray) -> float:
    every = np.array(list(itertools.product(*(range(count) for count in limits.space.counts))))
    fitting = every[(limits.table.spent(every) <= limits.spare).all(axis=1)]
    return float(losses[np.arange(len(losses)), fitting].sum(axis=1).min())


@st.composite
def scans(draw: st.DrawFn, *, most_layers: int, widest: int, noisy: bool = False) -> MadeUpScan:
    dense = draw(st.lists(st.sampled_from(range(24, widest + 1, 2)), min_size=1, max_size=most_layers))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return made_up_scan(
        rng,
        dense,
        num_levels=draw(st.integers(2, 3)),
        round_to=draw(st.sampled_from([8, 16])),
        num_limits=draw(st.integers(2, 3)),
        noise=0.5 if noisy else 0.0,
    )


def losses_of(scan: MadeUpScan) -> FloatArray:
    return interpolated_losses(scan.levels, scan.loss, scan.limits.space)


@settings(max_examples=60, deadline=None)
@given(scans(most_layers=4, widest=64))
def test_few_layers_of_few_widths_are_solved_exactly(scan: MadeUpScan) -> None:
    losses = losses_of(scan)
    found = total_loss(scan.limits, losses, solved(scan))
    assert found == pytest.approx(best_by_trying(scan.limits, losses), rel=1e-9, abs=1e-9)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(scans(most_layers=8, widest=96), st.integers(0, 2**32 - 1))
def test_never_worse_than_random_starts(scan: MadeUpScan, seed: int) -> None:
    rng = np.random.default_rng(seed)
    losses = losses_of(scan)
    found = total_loss(scan.limits, losses, solved(scan))
    for worth in (rng.normal(size=losses.shape), rng.random(losses.shape).cumsum(axis=1), -losses, -losses):
        fitted = scan.limits.fit(rng.integers(scan.limits.space.counts), worth)
        assert found <= total_loss(scan.limits, losses, fitted) * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(scans(most_layers=8, widest=96, noisy=True))
def test_noisy_tables_keep_to_the_limits_and_use_them_up(scan: MadeUpScan) -> None:
    losses = losses_of(scan)
    found = total_loss(scan.limits, losses, solved(scan))
    # Never worse than the optimum under one of the limits, fitted to all.
    alone = solved(scan, Limits(scan.limits.space, (scan.limits.binding,)))
    assert found <= total_loss(scan.limits, losses, scan.limits.fit(alone, -losses)) * (1 + 1e-9)


BEFORE: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent.parent / "assets" / "additive_widths_0_12.json").read_text()
)
"""What the code answered before spaces and one solver: `widths` of scans made up with the other numbers, under limit
`only` of them, or under all (None)."""


@pytest.mark.parametrize("before", BEFORE, ids=lambda x: f"{x['seed']}-{x['only']}")
def test_as_before_under_one_limit_and_never_worse_under_several(before: dict[str, Any]) -> None:
    made = {name: before[name] for name in ("num_levels", "round_to", "num_limits", "noise")}
    scan = made_up_scan(np.random.default_rng(before["seed"]), before["dense"], **made)
    if before["only"] is not None:
        limits = Limits(scan.limits.space, (scan.limits.limits[before["only"]],))
        assert limits.units_of(solved(scan, limits)) == before["widths"]
        return
    losses, then = losses_of(scan), scan.limits.space.at_most(before["widths"])
    assert scan.limits.units_of(then) == before["widths"]
    now = total_loss(scan.limits, losses, solved(scan))
    assert now <= total_loss(scan.limits, losses, then) * (1 + 1e-9)


# Written down before several limits were solved together.
GOLDEN = [
    (0, [48, 66, 96, 200, 48]),
    (1, [64, 66, 128, 120, 96]),
    (2, [64, 66, 128, 157, 96]),
    (3, [64, 16, 128, 64, 64]),
    (4, [64, 24, 128, 192, 24]),
    (5, [32, 32, 96, 256, 80]),
]


@pytest.mark.parametrize(("seed", "expected"), GOLDEN)
def test_plans_under_one_limit_are_as_they_were(seed: int, expected: list[int]) -> None:
    rng = np.random.default_rng(seed)
    scan = made_up_scan(
        rng, [64, 66, 128, 256, 96], num_levels=4, round_to=[8, 24, 1][seed % 3], noise=0.3 * (seed % 2)
    )
    limits = Limits(scan.limits.space, (scan.limits.limits[seed % 2],))
    assert limits.units_of(solved(scan, limits)) == expected
