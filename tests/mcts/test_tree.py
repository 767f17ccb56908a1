"""The tree: feasible actions, visits, values and completeness, by hand."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcts.tree import Tree
from pruning.errors import InfeasibleBudgetError
from pruning.planning.limits import Limits
from pruning.planning.space import Choice
from tests.mcts.landscapes import limits_of, make_limits
from tests.pruning.made_up_limits import every_choice, is_tight, meets, ragged_limits


def test_actions_leave_no_step_unused() -> None:
    # Two layers that keep 1 to 3, 4 together: (0, 2), (1, 1), (2, 0).
    tree = Tree(make_limits(2, 3, budget=4))
    assert tree.root.actions == [0, 1, 2]
    assert [tree.child(tree.root, k).actions for k in (0, 1, 2)] == [[2], [1], [0]]
    assert tree.child(tree.root, 1) is tree.child(tree.root, 1)
    # 5 together: option 0 would leave a step unused even with a dense second layer.
    assert Tree(make_limits(2, 3, budget=5)).root.actions == [1, 2]


def test_backup_values() -> None:
    tree = Tree(make_limits(2, 3, budget=4))
    for choice, value in (((0, 2), 2.0), ((1, 1), 5.0), ((1, 1), 1.0)):
        path = tree.path(choice)
        tree.expand(path)
        tree.backward(path, value)
    assert tree.root.visit_count.tolist() == [1, 2, 0]
    assert tree.root.value_sum.tolist() == [2.0, 6.0, 0.0]
    assert tree.root.value_max.tolist() == [2.0, 5.0, 0.0]
    leaf = tree.child(tree.root, 1)
    assert (leaf.visit_count.tolist(), leaf.value_sum.tolist(), leaf.value_max.tolist()) == ([2], [6.0], [5.0])


def test_visit_counts_before_its_value() -> None:
    tree = Tree(make_limits(2, 3, budget=4))
    tree.expand(tree.path((0, 2)))
    assert tree.root.visit_count.tolist() == [1, 0, 0]
    assert tree.root.value_sum.tolist() == [0.0, 0.0, 0.0]


def test_complete_when_every_choice_was_visited() -> None:
    tree = Tree(make_limits(2, 3, budget=4))
    seen = []
    for choice in ((0, 2), (2, 0), (1, 1)):
        assert not tree.is_complete
        tree.expand(tree.path(choice))
        seen.append(tree.root.complete.tolist())
    assert seen == [[True, False, False], [True, False, True], [True, True, True]]
    assert tree.is_complete


def test_infeasible_budget() -> None:
    with pytest.raises(InfeasibleBudgetError, match="the smallest plan needs ffn_parameters = 2"):
        make_limits(2, 3, budget=1)


def leaves_of(limits: Limits) -> list[Choice]:
    """Every choice that the tree leads to, in order."""
    tree = Tree(limits)
    found: list[Choice] = []
    nodes = [tree.root]
    while nodes:
        node = nodes.pop()
        assert node.actions, "a feasible node always has an action"
        for option in node.actions:
            if len(node.prefix) == limits.space.num_decisions - 1:
                found.append((*node.prefix, option))
            else:
                nodes.append(tree.child(node, option))
    return sorted(found)


@st.composite
def rows(draw: st.DrawFn) -> list[list[int]]:
    """Costs of one to four decisions, of two to four options each."""
    return [
        list(itertools.accumulate(draw(st.lists(st.integers(1, 7), min_size=2, max_size=4))))
        for _ in range(draw(st.integers(1, 4)))
    ]


@settings(max_examples=60, deadline=None)
@given(rows(), st.data())
def test_tree_holds_exactly_what_uses_the_limit_up_but_for_a_step(costs: list[list[int]], data: st.DataObject) -> None:
    least, most = sum(row[0] for row in costs), sum(row[-1] for row in costs)
    budget = data.draw(st.integers(least, most + 3))
    limits = limits_of(costs, budget)
    found = leaves_of(limits)
    step = max(b - a for row in costs for a, b in itertools.pairwise(row))
    everything = itertools.product(*(range(len(row)) for row in costs))
    left = {
        choice: min(budget, most) - sum(row[k] for row, k in zip(costs, choice, strict=True)) for choice in everything
    }
    assert found == [choice for choice, slack in left.items() if 0 <= slack < step]
    assert set(found) >= {choice for choice in left if limits.is_tight(choice)}


@settings(max_examples=60, deadline=None)
@given(ragged_limits(max_decisions=4, max_options=4, ladder=True, least_step=1))
def test_under_several_limits_it_leads_to_every_tight_choice_and_to_none_that_exceeds_one(limits: Limits) -> None:
    leaves = leaves_of(limits)
    assert all(meets(limits, choice) for choice in leaves)
    assert {choice for choice in every_choice(limits) if is_tight(limits, choice)} <= set(leaves)
