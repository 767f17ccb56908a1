"""The tree: feasible actions, visits, values and completeness, by hand."""

import itertools

from hypothesis import given, settings

from mcts.tree import Node, Tree
from pruning.planning.limits import Limits
from pruning.planning.space import Choice
from tests.mcts.landscapes import equal_limits
from tests.pruning.made_up_limits import cost_of, every_choice, ragged_limits


def make_tree(budget: int = 4) -> Tree:
    """Two layers of one to three channels."""
    return Tree(equal_limits(2, 3, budget))


def test_actions_leave_no_step_unused() -> None:
    # Four channels: 1 + 3, 2 + 2, 3 + 1.
    tree = make_tree(4)
    assert tree.root.actions == [0, 1, 2]
    assert [tree.child(tree.root, k).actions for k in (0, 1, 2)] == [[2], [1], [0]]
    assert tree.child(tree.root, 1) is tree.child(tree.root, 1)
    # Five: the first option would leave a step unused even with a dense second layer.
    assert make_tree(5).root.actions == [1, 2]


def test_backup_values() -> None:
    tree = make_tree()
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
    tree = make_tree()
    tree.expand(tree.path((0, 2)))
    assert tree.root.visit_count.tolist() == [1, 0, 0]
    assert tree.root.value_sum.tolist() == [0.0, 0.0, 0.0]


def test_complete_when_every_choice_was_visited() -> None:
    tree = make_tree()
    seen = []
    for choice in ((0, 2), (2, 0), (1, 1)):
        assert not tree.is_complete
        tree.expand(tree.path(choice))
        seen.append(tree.root.complete.tolist())
    assert seen == [[True, False, False], [True, False, True], [True, True, True]]
    assert tree.is_complete


def leaves_of(limits: Limits) -> list[Choice]:
    """Every choice that the tree leads to."""
    tree = Tree(limits)
    found: list[Choice] = []
    nodes: list[Node] = [tree.root]
    while nodes:
        node = nodes.pop()
        assert node.actions, "a feasible node always has an action"
        for option in node.actions:
            if len(node.prefix) == limits.space.num_decisions - 1:
                found.append((*node.prefix, option))
            else:
                nodes.append(tree.child(node, option))
    return sorted(found)


@settings(max_examples=60, deadline=None)
@given(ragged_limits(max_limits=1, max_decisions=4, max_options=4, ladder=True, least_step=1))
def test_tree_holds_exactly_what_uses_the_limit_up_but_for_a_step(limits: Limits) -> None:
    (limit,) = limits.limits
    step = max((int(b - a) for row in limit.costs for a, b in itertools.pairwise(row)), default=0)
    allowed = min(limit.most, limit.dense)
    left = {choice: allowed - cost_of(limit, choice) for choice in every_choice(limits)}
    expected = [choice for choice, over in left.items() if over == 0 or 0 <= over < step]
    assert leaves_of(limits) == expected


@settings(max_examples=60, deadline=None)
@given(ragged_limits(max_decisions=4, max_options=4, ladder=True, least_step=1))
def test_tree_leads_to_every_tight_choice_and_to_none_that_exceeds_a_limit(limits: Limits) -> None:
    leaves = leaves_of(limits)
    assert all((limits.slack(choice) >= 0).all() for choice in leaves)
    assert {choice for choice in every_choice(limits) if limits.is_tight(choice)} <= set(leaves)
