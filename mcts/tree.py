"""The search tree of one target: a node is a prefix of a choice, an edge one more decision's option.

Letters: N decisions, J limits, A actions of a node (its feasible options). Statistics belong to edges and
lie in arrays [A] of the node they leave, as in mctx.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pruning.arrays import FloatArray, IntArray
from pruning.planning.limits import Limits
from pruning.planning.space import Choice


class Node:
    """A prefix of a choice and the statistics of its A edges.

    Attributes:
        prefix: the options of the decisions before this one; the edges decide number `len(prefix)`.
        slack: [J] what the decisions from here on may cost above their cheapest options.
        actions: [A] feasible options, increasing.
        prior: [A] probabilities, set by the search; `prior_version` says by which surrogate.
        visit_count: [A] simulations that took the edge, those still in flight included.
        value_sum: [A] sum of 1 / KL over the evaluations below the edge.
        value_max: [A] largest 1 / KL below the edge.
        complete: [A] every choice below the edge was visited.
        children: node at the end of each edge, by option.
    """

    __slots__ = (
        "actions",
        "children",
        "complete",
        "prefix",
        "prior",
        "prior_version",
        "slack",
        "value_max",
        "value_sum",
        "visit_count",
    )

    def __init__(self, prefix: Choice, slack: IntArray, actions: list[int]) -> None:
        self.prefix = prefix
        self.slack = slack
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
    """All choices that `Limits.feasible` leads to; nodes appear as they are visited."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.root = self._node((), limits.spare)

    @property
    def is_complete(self) -> bool:
        """Every choice was visited: there is nothing left to search."""
        return bool(self.root.complete.all())

    def _node(self, prefix: Choice, slack: IntArray) -> Node:
        return Node(prefix, slack, np.flatnonzero(self.limits.feasible(len(prefix), slack)).tolist())

    def child(self, node: Node, option: int) -> Node:
        """The node after `option`, made if it is new. Not for the last decision, whose edges end at choices."""
        if option not in node.children:
            slack = node.slack - self.limits.table.columns[len(node.prefix)][option]
            node.children[option] = self._node((*node.prefix, option), slack)
        return node.children[option]

    def path(self, choice: Choice) -> list[Edge]:
        """The N edges from the root to `choice`; none if the tree does not have it, which leaves too much over."""
        node = self.root
        edges: list[Edge] = []
        for option in choice:
            if option not in node.actions:
                return []
            edges.append(Edge(node, node.actions.index(option)))
            if len(edges) < len(choice):
                node = self.child(node, option)
        return edges

    def expand(self, path: list[Edge]) -> None:
        """Count a visit on every edge of `path` [N or 0] and close what has nothing left to visit below it.

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
        """Add `value` (1 / KL) to every edge of `path` [N or 0]."""
        for edge in path:
            edge.node.value_sum[edge.index] += value
            edge.node.value_max[edge.index] = max(edge.node.value_max[edge.index], value)
