"""PUCT scores worked out by hand."""

import numpy as np
import pytest

from mcts.selection import action_values, puct_scores, select_action
from mcts.tree import Node


def node_by_hand() -> Node:
    """KL seen: 0.1 and 0.2 below the first edge, 0.4 below the second; the third was not visited."""
    node = Node((), np.array([7]), [0, 1, 2])
    node.prior = np.array([0.5, 0.3, 0.2])
    node.visit_count[:] = [2, 1, 0]
    node.value_sum[:] = [15.0, 2.5, 0.0]
    node.value_max[:] = [10.0, 2.5, 0.0]
    return node


def test_values_are_half_mean_half_max_of_best_over_kl() -> None:
    # 0.1 * (7.5 + 10) / 2, 0.1 * 2.5, and for the unvisited edge the mean of all three: 0.1 * 17.5 / 3.
    assert action_values(node_by_hand(), best_score=0.1) == pytest.approx([0.875, 0.25, 1.75 / 3])


def test_puct_scores() -> None:
    # sqrt(3 + 1) = 2: exploration 0.5 * 2/3, 0.3 * 2/2, 0.2 * 2/1.
    expected = [0.875 + 1 / 3, 0.25 + 0.3, 1.75 / 3 + 0.4]
    assert puct_scores(node_by_hand(), best_score=0.1, c_puct=1.0) == pytest.approx(expected)
    doubled = [0.875 + 2 / 3, 0.25 + 0.6, 1.75 / 3 + 0.8]
    assert puct_scores(node_by_hand(), best_score=0.1, c_puct=2.0) == pytest.approx(doubled)


def test_unvisited_node_follows_the_prior() -> None:
    node = Node((), np.array([7]), [0, 1, 2])
    node.prior = np.array([0.2, 0.5, 0.3])
    assert puct_scores(node, best_score=0.1, c_puct=1.0) == pytest.approx([0.2, 0.5, 0.3])
    assert select_action(node, best_score=0.1, c_puct=1.0) == 1


def test_complete_edges_are_never_selected() -> None:
    node = node_by_hand()
    node.complete[0] = True
    assert puct_scores(node, 0.1, 1.0)[0] == -np.inf
    assert select_action(node, 0.1, 1.0) == 2


def test_ties_go_to_the_last_option() -> None:
    assert select_action(Node((), np.array([7]), [0, 1, 2]), best_score=0.1, c_puct=1.0) == 2


def test_scores_do_not_know_the_scale_of_kl() -> None:
    scaled = node_by_hand()
    scaled.value_sum /= 1024.0
    scaled.value_max /= 1024.0
    assert puct_scores(scaled, 0.1 * 1024.0, 1.0) == pytest.approx(puct_scores(node_by_hand(), 0.1, 1.0), rel=1e-14)
