"""The tree: feasible actions, visits, values and completeness, by hand."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcts.moves import is_tight
from mcts.tree import Tree
from pruning.errors import InfeasibleTargetError
from pruning.planning.levels import Configuration, LevelGrid
from tests.mcts.landscapes import make_grid


def test_actions_leave_no_step_unused() -> None:
    # Two layers of levels 1..3, budget 4: (1, 3), (2, 2), (3, 1).
    tree = Tree(make_grid(2, 3), 4)
    assert tree.root.actions == [1, 2, 3]
    assert [tree.child(tree.root, k).actions for k in (1, 2, 3)] == [[3], [2], [1]]
    assert tree.child(tree.root, 2) is tree.child(tree.root, 2)
    # Budget 5: level 1 would leave a step unused even with a dense second layer.
    assert Tree(make_grid(2, 3), 5).root.actions == [2, 3]


def test_backup_values() -> None:
    tree = Tree(make_grid(2, 3), 4)
    for configuration, value in (((1, 3), 2.0), ((2, 2), 5.0), ((2, 2), 1.0)):
        path = tree.path(configuration)
        tree.expand(path)
        tree.backward(path, value)
    assert tree.root.visit_count.tolist() == [1, 2, 0]
    assert tree.root.value_sum.tolist() == [2.0, 6.0, 0.0]
    assert tree.root.value_max.tolist() == [2.0, 5.0, 0.0]
    leaf = tree.child(tree.root, 2)
    assert (leaf.visit_count.tolist(), leaf.value_sum.tolist(), leaf.value_max.tolist()) == ([2], [6.0], [5.0])


def test_visit_counts_before_its_value() -> None:
    tree = Tree(make_grid(2, 3), 4)
    tree.expand(tree.path((1, 3)))
    assert tree.root.visit_count.tolist() == [1, 0, 0]
    assert tree.root.value_sum.tolist() == [0.0, 0.0, 0.0]


def test_complete_when_every_configuration_was_visited() -> None:
    tree = Tree(make_grid(2, 3), 4)
    seen = []
    for configuration in ((1, 3), (3, 1), (2, 2)):
        assert not tree.is_complete
        tree.expand(tree.path(configuration))
        seen.append(tree.root.complete.tolist())
    assert seen == [[True, False, False], [True, False, True], [True, True, True]]
    assert tree.is_complete


def test_infeasible_budget() -> None:
    with pytest.raises(InfeasibleTargetError, match="lowest configuration costs 2"):
        Tree(make_grid(2, 3), 1)


@st.composite
def grids(draw: st.DrawFn) -> LevelGrid:
    num_levels = draw(st.integers(2, 4))
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        steps = draw(st.lists(st.integers(1, 7), min_size=num_levels, max_size=num_levels))
        rows.append(tuple(itertools.accumulate(steps)))
    return LevelGrid(widths=tuple(rows), costs=tuple(rows), round_to=1)


@settings(max_examples=60, deadline=None)
@given(grids(), st.data())
def test_tree_holds_exactly_the_tight_configurations(grid: LevelGrid, data: st.DataObject) -> None:
    budget = data.draw(st.integers(grid.min_cost_from[0], grid.max_cost_from[0] + 3))
    tree = Tree(grid, budget)
    found: list[Configuration] = []
    nodes = [tree.root]
    while nodes:
        node = nodes.pop()
        assert node.actions, "a feasible node always has an action"
        for level in node.actions:
            if node.layer == grid.num_layers - 1:
                found.append((*node.levels, level))
            else:
                nodes.append(tree.child(node, level))
    everything = itertools.product(range(1, grid.num_levels + 1), repeat=grid.num_layers)
    assert sorted(found) == [c for c in everything if is_tight(grid, c, budget)]
