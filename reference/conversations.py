"""A conversation: several question-answer turns about one scene, which makes its image tokens cheap."""

from dataclasses import dataclass

import numpy as np

from reference.lessons import LESSONS, ask_list
from reference.questions import Turn
from reference.scenes import Scene, sample_scene

PLAN: tuple[str, ...] = (
    "digit", "colour", "shape", "count", "position", "relation", "sum", "name", "name", "fact", "fact", "fact",
)  # fmt: skip
"""Kinds of one conversation's turns, before shuffling; a turn the scene cannot offer becomes a fact."""

STUDY_PLAN: tuple[str, ...] = tuple({"count": "tally", "sum": "row_sum"}.get(kind, kind) for kind in PLAN)
"""PLAN with harder counts and sums, for the middle of training."""

LOOK_PLAN: tuple[str, ...] = ("digit", "digit", "colour", "colour", "shape", "position")
"""The first lessons: one glance each and no facts. Facts are easier to learn, so with them from the start the
model would first memorise for a thousand steps and only then begin to look."""

STEP_PLAN: tuple[str, ...] = (
    "step", "step", "beside", "neighbour", "neighbour", "relation", "relation", "row", "add", "row_sum", "tally",
    "tally", "fact",
)  # fmt: skip
"""What takes several steps of thought, and the steps one by one, once single glances are learned."""

DRILL_PLAN: tuple[str, ...] = (
    "step", "beside", "neighbour", "neighbour", "relation", "relation", "add", "sum", "sum", "sum", "count", "count",
    "fact",
)  # fmt: skip
"""The same for the questions of PLAN itself, until the end."""


@dataclass(frozen=True)
class Conversation:
    scene: Scene
    turns: tuple[Turn, ...]


def sample_conversation(rng: np.random.Generator, plan: tuple[str, ...] = PLAN) -> Conversation:
    """A random scene and len(plan) different questions about it; what it cannot offer becomes a fact, or a count
    in a plan without facts."""
    scene = sample_scene(rng)
    fresh = list(scene.things)
    asked: set[str] = set()
    turns: list[Turn] = []
    spare = "fact" if "fact" in plan else "tally"
    for index in rng.permutation(len(plan)):
        turn = LESSONS[plan[index]](scene, fresh, rng)
        while turn is None or turn.question in asked:
            turn = LESSONS[spare](scene, fresh, rng)
        asked.add(turn.question)
        fresh = [thing for thing in fresh if thing not in turn.used]
        turns.append(turn)
    if plan == LOOK_PLAN:  # last, so that its answer gives nothing away
        turns.append(ask_list(scene, rng))
    return Conversation(scene, tuple(turns))
