"""The search tree of one target: a node is a prefix of levels, an edge one more layer's level.

Letters: L decoder layers, K levels, A actions of a node (its budget-feasible levels). Statistics belong to edges and
lie in arrays [A] of the node they leave, as in mctx.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pruning.arrays import FloatArray
from pruning.planning.levels import Configuration, LevelGrid


class Node:
    """A prefix of levels and the statistics of its A edges.

    Attributes:
        levels: the prefix, one level for each of layers 0..layer - 1.
        layer: the layer that the edges decide.
        remaining: parameters left for layers `layer`.. .
        actions: [A] budget-feasible levels, increasing.
        prior: [A] probabilities, set by the search; `prior_version` says by which surrogate.
        visit_count: [A] simulations that took the edge, those still in flight included.
        value_sum: [A] sum of 1 / KL over the evaluations below the edge.
        value_max: [A] largest 1 / KL below the edge.
        complete: [A] every configuration below the edge was visited.
        children: node at the end of each edge, by level.
    """

    __slots__ = (
        "actions",
        "children",
        "complete",
        "layer",
        "levels",
        "prior",
        "prior_version",
        "remaining",
        "value_max",
        "value_sum",
        "visit_count",
    )

    def __init__(self, levels: Configuration, remaining: int, actions: list[int]) -> None:
        self.levels = levels
        self.layer = len(levels)
        self.remaining = remaining
        self.actions = actions
        self.prior: FloatArray = np.full(len(actions), 1.0 / len(actions))
        self.prior_version = -1
        self.visit_count: NDArray[np.int64] = np.zeros(len(actions), dtype=np.int64)
        self.value_sum: FloatArray = np.zeros(len(actions))
        self.value_max: FloatArray = np.zeros(len(actions))
        self.complete: NDArray[np.bool_] = np.zeros(len(actions), dtype=np.bool_)
        self.children: dict[int, Node] = {}


@dataclass(frozen=True, slots=True)
class Edge:
    """One step of a path: the node it leaves, and the index of the action in that node's arrays."""

    node: Node
    index: int


class Tree:
    """All configurations of `grid` that fit `budget` parameters and use it up; nodes appear as they are visited.

    Raises InfeasibleTargetError if there is no such configuration.
    """

    def __init__(self, grid: LevelGrid, budget: int) -> None:
        grid.check_budget(budget)
        self.grid = grid
        self.root = Node((), budget, grid.feasible_levels(0, budget))

    @property
    def is_complete(self) -> bool:
        """Every configuration was visited: there is nothing left to search."""
        return bool(self.root.complete.all())

    def child(self, node: Node, level: int) -> Node:
        """The node after `level`, made if it is new. Not for the last layer, whose edges end at configurations."""
        if level not in node.children:
            remaining = node.remaining - self.grid.costs[node.layer][level - 1]
            actions = self.grid.feasible_levels(node.layer + 1, remaining)
            node.children[level] = Node((*node.levels, level), remaining, actions)
        return node.children[level]

    def path(self, configuration: Configuration) -> list[Edge]:
        """The L edges from the root to `configuration`, which must be feasible."""
        node = self.root
        edges = []
        for level in configuration:
            edges.append(Edge(node, node.actions.index(level)))
            if len(edges) < self.grid.num_layers:
                node = self.child(node, level)
        return edges

    def expand(self, path: list[Edge]) -> None:
        """Count a visit on every edge of `path` [L] and close what has nothing left to visit below it.

        The visit counts before its value is known: until then it holds leaves in flight apart, as a virtual loss does
        (Chaslot et al., Parallel Monte-Carlo Tree Search, 2008).
        """
        self.count_visit(path, 1)
        finished = True
        for edge in reversed(path):
            edge.node.complete[edge.index] = finished
            finished = bool(edge.node.complete.all())

    def count_visit(self, path: list[Edge], change: int) -> None:
        """Add `change` to the visit count of every edge of `path`."""
        for edge in path:
            edge.node.visit_count[edge.index] += change

    def backward(self, path: list[Edge], value: float) -> None:
        """Add `value` (1 / KL) to every edge of `path` [L]."""
        for edge in path:
            edge.node.value_sum[edge.index] += value
            edge.node.value_max[edge.index] = max(edge.node.value_max[edge.index], value)
