"""The kinds of question and how one of each is asked about a scene.

Every question has exactly one right answer. Each asker gets the objects that no earlier turn of the conversation
has talked about (`fresh`), and reports the ones it used, so that no turn gives away the answer of a later one.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from reference.facts import QUESTIONS, knowledge_base
from reference.glyphs import COLOUR_NAMES, SHAPES
from reference.scenes import Scene, Thing

DIRECTIONS: dict[str, tuple[int, int]] = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
"""Words -> (row step, column step) from the object asked about to the answer."""

NOTHING = "nothing"
_NOTHING_SHARE = 0.2


@dataclass(frozen=True)
class Turn:
    """One question with its answer; `used` are the objects it talks about."""

    kind: str
    question: str
    answer: str
    used: tuple[Thing, ...] = ()


_T = TypeVar("_T")
Asker = Callable[[Scene, list[Thing], np.random.Generator], Turn | None]


def choose(options: list[_T], rng: np.random.Generator) -> _T | None:
    return options[int(rng.integers(len(options)))] if options else None


def _lone_kinds(scene: Scene) -> set[str]:
    """Kinds of which the scene has one object only: 'the circle' is then unambiguous."""
    counts = Counter(thing.kind for thing in scene.things)
    return {kind for kind, count in counts.items() if count == 1}


def describe(scene: Scene, thing: Thing) -> str | None:
    """'circle' or 'red circle', the shortest phrase that means this object alone; None if there is none."""
    if thing.kind in _lone_kinds(scene):
        return thing.kind
    twins = [other for other in scene.things if (other.kind, other.colour) == (thing.kind, thing.colour)]
    return f"{thing.colour} {thing.kind}" if len(twins) == 1 else None


def _ask_what(scene: Scene, fresh: list[Thing], rng: np.random.Generator, digit: bool) -> Turn | None:
    """Which digit, or which shape: by its colour if that is unique, or by its place."""
    word = "digit" if digit else "shape"
    thing = choose([thing for thing in fresh if thing.is_digit == digit], rng)
    if thing is None:
        return None
    alike = [other for other in scene.things if other.is_digit == digit and other.colour == thing.colour]
    if len(alike) == 1 and rng.random() < 0.6:
        return Turn(word, f"Which {word} is {thing.colour}?", thing.kind, (thing,))
    return Turn(word, f"Which {word} is at {thing.place}?", thing.kind, (thing,))


def ask_digit(scene: Scene, fresh: list[Thing], rng: np.random.Generator) -> Turn | None:
    return _ask_what(scene, fresh, rng, digit=True)


def ask_shape(scene: Scene, fresh: list[Thing], rng: np.random.Generator) -> Turn | None:
    return _ask_what(scene, fresh, rng, digit=False)


def ask_colour(scene: Scene, fresh: list[Thing], rng: np.random.Generator) -> Turn | None:
    thing = choose(fresh, rng)
    if thing is None:
        return None
    if thing.kind in _lone_kinds(scene) and rng.random() < 0.6:
        return Turn("colour", f"What colour is the {thing.kind}?", thing.colour, (thing,))
    return Turn("colour", f"Which colour is at {thing.place}?", thing.colour, (thing,))


def ask_count(scene: Scene, _fresh: list[Thing], rng: np.random.Generator) -> Turn | None:
    if rng.integers(2):
        shape = SHAPES[int(rng.integers(len(SHAPES)))]
        plural = "crosses" if shape == "cross" else f"{shape}s"
        return Turn("count", f"How many {plural} are there?", str(sum(t.kind == shape for t in scene.things)))
    colour = COLOUR_NAMES[int(rng.integers(len(COLOUR_NAMES)))]
    return Turn("count", f"How many objects are {colour}?", str(sum(t.colour == colour for t in scene.things)))


def ask_position(scene: Scene, fresh: list[Thing], rng: np.random.Generator) -> Turn | None:
    thing = choose([thing for thing in fresh if describe(scene, thing)], rng)
    if thing is None:
        return None
    return Turn("position", f"Where is the {describe(scene, thing)}?", thing.place, (thing,))


def ask_relation(scene: Scene, fresh: list[Thing], rng: np.random.Generator) -> Turn | None:
    """What stands in the very next cell: an object with its colour, or nothing (an empty cell or the edge)."""
    found: list[tuple[Thing, str, Thing | None]] = []
    for thing in fresh:
        if describe(scene, thing) is None:
            continue
        for words, (down, right) in DIRECTIONS.items():
            neighbour = scene.by_place.get((thing.row + down, thing.column + right))
            if neighbour is None or neighbour in fresh:
                found.append((thing, words, neighbour))
    want_nothing = rng.random() < _NOTHING_SHARE
    pick = choose([item for item in found if (item[2] is None) == want_nothing], rng)
    if pick is None:
        return None
    thing, words, neighbour = pick
    question = f"What is {words} the {describe(scene, thing)}?"
    if neighbour is None:
        return Turn("relation", question, NOTHING, (thing,))
    return Turn("relation", question, f"{neighbour.colour} {neighbour.kind}", (thing, neighbour))


def ask_sum(scene: Scene, fresh: list[Thing], rng: np.random.Generator) -> Turn | None:
    """Two digits by their places. One of them is fresh, so that earlier answers do not give the sum away."""
    first = choose([thing for thing in fresh if thing.is_digit], rng)
    second = choose([thing for thing in scene.things if thing.is_digit and thing != first], rng)
    if first is None or second is None:
        return None
    one, other = (first, second) if rng.integers(2) else (second, first)
    answer = str(int(first.kind) + int(second.kind))
    return Turn("sum", f"What is the sum of {one.place}, {other.place}?", answer, (first,))


def ask_name(scene: Scene, fresh: list[Thing], rng: np.random.Generator) -> Turn | None:
    """Needs the picture (the colour, or the whole look) and then memory."""
    thing = choose(fresh, rng)
    if thing is None:
        return None
    name = knowledge_base().names[thing.colour, thing.kind]
    if thing.kind in _lone_kinds(scene) and rng.random() < 0.5:
        return Turn("name", f"Who is the {thing.kind}?", name, (thing,))
    return Turn("name", f"Who is at {thing.place}?", name, (thing,))


_PEOPLE = tuple(knowledge_base().people)
_ATTRIBUTES = tuple(QUESTIONS)


def ask_fact(_scene: Scene, _fresh: list[Thing], rng: np.random.Generator) -> Turn | None:
    """Memory alone: the picture does not help."""
    person = _PEOPLE[int(rng.integers(len(_PEOPLE)))]
    attribute = _ATTRIBUTES[int(rng.integers(len(_ATTRIBUTES)))]
    return Turn("fact", QUESTIONS[attribute].format(person), knowledge_base().people[person][attribute])


ASKERS: dict[str, Asker] = {
    "digit": ask_digit,
    "colour": ask_colour,
    "shape": ask_shape,
    "count": ask_count,
    "position": ask_position,
    "relation": ask_relation,
    "sum": ask_sum,
    "name": ask_name,
    "fact": ask_fact,
}
"""Every kind of question."""
