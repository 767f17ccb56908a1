"""What a recovery came to, as one document: written beside the weights, and printed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pruning.cutting.measured_quality import RECOVERY_REPORT_NAME as REPORT_NAME
from recovery.recipe import Recipe
from recovery.scores import (
    LEAST_ANSWERS,
    AnswerScores,
    accuracy_change,
    beats,
    chance_of_gain,
    kl_change,
    percent_of_dense,
)
from recovery.state import Progress

__all__ = ["REPORT_NAME", "JudgedPart", "report_of"]


@dataclass(frozen=True)
class JudgedPart:
    """One part: scores of the dense model, of the start and of what was trained best, and the kinds of its answers."""

    name: str
    dense: AnswerScores
    before: AnswerScores
    after: AnswerScores
    kinds: tuple[str, ...] | None = None

    @property
    def is_better(self) -> bool:
        """Whether what was trained beats the start on this part."""
        return beats(self.after, self.before)

    def document(self, *, is_recovered: bool) -> dict[str, Any]:
        """What `after` says is of what is written: the start, if that was."""
        after = self.after if is_recovered else self.before
        found: dict[str, Any] = {
            "answers": len(self.dense.tokens),
            "dense": self.dense.document(),
            "before": self.before.document() | {"percent_of_dense": percent_of_dense(self.before, self.dense)},
            "after": after.document() | {"percent_of_dense": percent_of_dense(after, self.dense)},
            "kl_change": list(kl_change(after, self.before)),
            "accuracy_change": list(accuracy_change(after, self.before)),
        }
        if self.kinds is not None:
            found["by_kind"] = _by_kind(self.kinds, self.dense, self.before, after)
        return found


def _by_kind(
    kinds: Sequence[str], dense: AnswerScores, before: AnswerScores, after: AnswerScores
) -> dict[str, dict[str, Any]]:
    found = {}
    for kind in sorted(set(kinds)):
        own = np.array([index for index, name in enumerate(kinds) if name == kind])
        base = dense.at(own)
        found[kind] = {
            "answers": len(own),
            "before": percent_of_dense(before.at(own), base),
            "after": percent_of_dense(after.at(own), base),
        }
    return found


def report_of(
    recipe: Recipe,
    progress: Progress,
    parts: Sequence[JudgedPart],
    *,
    is_recovered: bool,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """The document. `facts` are of the run: data, folders, time, memory."""
    return {
        "written": "recovered" if is_recovered else "start",
        "why": _why(progress, parts[0], is_recovered=is_recovered),
        "recipe": recipe.document(),
        "steps": progress.step,
        "of_steps": progress.num_steps,
        "best_step": progress.best_step,
        "stopped": progress.stopped,
        **{part.name: part.document(is_recovered=is_recovered) for part in parts},
        # JSON has no word for what is no finite number.
        "evaluations": [{k: x if math.isfinite(x) else None for k, x in e.items()} for e in progress.evaluations],
        "curve": [list(point) for point in progress.curve],
        **facts,
    }


def _why(progress: Progress, selection: JudgedPart, *, is_recovered: bool) -> str:
    if is_recovered:
        return f"the weights of step {progress.best_step} are nearest to the dense model on the selection part"
    if not progress.best_step:
        return "no evaluation was nearer to the dense model than the start with as many exact answers"
    low, high = kl_change(selection.after, selection.before)
    if high < 0:
        chance, num_answers = chance_of_gain(selection.after, selection.before), len(selection.before.tokens)
        least = f"; fewer than {LEAST_ANSWERS} never do" if num_answers < LEAST_ANSWERS else ""
        return (
            f"step {progress.best_step} was the best, but the selection part's {num_answers} answers do not tell its "
            f"gain from chance, which gives as much in {chance:.0%} of cases{least}"
        )
    return (
        f"step {progress.best_step} was the best, but its gain is within the noise of the selection part: KL changed "
        f"by {low:.4g} to {high:.4g} nats a token (90% interval)"
    )
