"""Targets of a search with the finalists that are recovered for them, and what the value model says of those."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mcts.targets import SearchTarget
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture
from pruning.measuring.metrics import Metrics
from pruning.planning.plan import RecoveryStep
from pruning.planning.space import Choice
from storage.documents import canonical_protocol
from values.after_recovery import RecoveredValues, recovery_features
from values.kl_floor import log_kl

if TYPE_CHECKING:
    from recovery.recipe import Recipe

SELECTION, VALIDATION = "selection", "validation"
"""The parts that recovered models are judged on: the first decides, the second only reports."""


@dataclass
class Finalist:
    """A configuration that may be the best of its target after recovery.

    Attributes:
        before: on the search's calibration data, without any recovery.
        after: of the recovered model, by part; empty while it was not recovered.
        seconds: that recovering it took.
        expected_kl: on the selection part, as the value model has it; None: nothing is known.
    """

    choice: Choice
    architecture: Architecture
    before: Metrics
    after: dict[str, Metrics] = field(default_factory=dict)
    seconds: float = 0.0
    expected_kl: float | None = None

    def document(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "choice": list(self.choice),
            "before": self.before.to_dict(),
            "after": {part: metrics.to_dict() for part, metrics in self.after.items()},
            "expected_kl": self.expected_kl,
            "seconds": round(self.seconds, 1),
        }


@dataclass
class RecoveredTarget:
    """A target with its finalists, the best before recovery first, and the training `step` that they count on.

    `best`: number of the finalist that is best after recovery; None: none was recovered.
    """

    target: SearchTarget
    recipe: "Recipe"
    step: RecoveryStep
    finalists: list[Finalist]
    best: int | None = None

    @property
    def protocol(self) -> str:
        """Under which its samples are stored."""
        return canonical_protocol([self.step.model_dump(mode="json")])

    @property
    def recovered(self) -> list[Finalist]:
        """Those that were."""
        return [finalist for finalist in self.finalists if finalist.after]

    def document(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "label": self.target.label,
            "sparsity": self.target.sparsity,
            "recipe": self.recipe.document(),
            "chosen": self.best,
            "best_before_is_best_after": None if self.best is None else self.best == 0,
            "finalists": [finalist.document() for finalist in self.finalists],
        }


def next_recovery(
    targets: Sequence[RecoveredTarget], anatomy: ModelAnatomy, *, seconds: float, num_answers: int
) -> tuple[RecoveredTarget, Finalist] | None:
    """What is to be recovered next; None if everything was, or if one more does not fit the `seconds`.

    The best one before comes first in every target, then whichever is expected to gain most. The first of all fits
    always: how long one takes is known from others.
    """
    done = [finalist.seconds for x in targets for finalist in x.recovered]
    if done and sum(done) + sum(done) / len(done) > seconds:
        return None
    for target in targets:
        if not target.recovered:
            return target, target.finalists[0]
    most, found = 0.0, None
    for of_protocol, values in fitted(targets, anatomy, num_answers=num_answers):
        numbered = [(x, finalist) for x in of_protocol for finalist in x.finalists]
        improvements = values.improvements()
        for place, improvement in zip(numbered, improvements, strict=True):
            if improvement > most and not place[1].after:
                most, found = float(improvement), place
    return found


def fitted(
    targets: Sequence[RecoveredTarget], anatomy: ModelAnatomy, *, num_answers: int
) -> list[tuple[list[RecoveredTarget], RecoveredValues]]:
    """The value model of the targets of each protocol that has recovered finalists; `num_answers` decide.

    What it says is noted in their finalists, and in `best`.
    """
    by_protocol: dict[str, list[RecoveredTarget]] = {}
    for target in targets:
        if target.recovered:
            by_protocol.setdefault(target.protocol, []).append(target)
    found = []
    for group in by_protocol.values():
        numbered = [(n, finalist) for n, x in enumerate(group) for finalist in x.finalists]
        values = RecoveredValues.fit(
            np.array([n for n, _ in numbered]),
            np.array([log_kl(finalist.before.score) for _, finalist in numbered]),
            np.array([recovery_features(finalist.architecture, anatomy) for _, finalist in numbered]),
            {i: log_kl(x.after[SELECTION].kl) for i, (_, x) in enumerate(numbered) if x.after},
            num_answers=num_answers,
        )
        for (_, finalist), expected in zip(numbered, values.expected, strict=True):
            finalist.expected_kl = float(np.exp(expected))
        for n, target in enumerate(group):
            best = values.best(n)
            first = next(i for i, (of, _) in enumerate(numbered) if of == n)
            target.best = None if best is None else best - first
        found.append((group, values))
    return found


def document_of(values: RecoveredValues) -> Mapping[str, Any]:
    """What a report says of the value model, plain JSON types."""
    left_out = values.points > 0
    return {
        "points": values.points,
        "error_of_order_before": values.error_of_order if left_out else None,
        "error": values.error if left_out else None,
        "ridge": values.ridge,
    }
