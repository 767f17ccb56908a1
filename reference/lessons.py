"""Questions asked in training alone: the single steps that the others are made of.

A relation is four steps (find the object, its place, the place beside it, what is there), and a model that must find
them all at once does not: asked for relations without their steps, it still guessed 2,000 training
steps later.
"""

import numpy as np

from reference.glyphs import COLOUR_NAMES, GRID, PLACES, SHAPES
from reference.questions import ASKERS, DIRECTIONS, NOTHING, Asker, Turn, choose, describe
from reference.scenes import Scene, Thing


def ask_list(scene: Scene, rng: np.random.Generator) -> Turn:
    """Every object with its place, in any order: a first lesson only, since the order is anyone's guess.

    'F 7 red': after the place the kind is one look away, with no word in between, and after '7' so is the colour.
    That is the shortest way to find out that words match patches, and every other question needs it. The three
    words change places between lessons, so that each learns to find the others.
    """
    words = rng.permutation(3)
    order = rng.permutation(len(scene.things))
    looks = [(scene.things[i].place, scene.things[i].kind, scene.things[i].colour) for i in order]
    return Turn("list", "What is in the picture?", ", ".join(" ".join(look[w] for w in words) for look in looks))


def _place_at(row: int, column: int) -> str | None:
    """The letter of a cell, None outside the grid."""
    inside = 1 <= row <= GRID and 1 <= column <= GRID
    return PLACES[(row - 1) * GRID + column - 1] if inside else None


def _direction(rng: np.random.Generator) -> tuple[str, int, int]:
    words = list(DIRECTIONS)[int(rng.integers(len(DIRECTIONS)))]
    return words, *DIRECTIONS[words]


def ask_step(_scene: Scene, _fresh: list[Thing], rng: np.random.Generator) -> Turn:
    """Which place is beside a place: the map of the grid, no picture needed."""
    words, down, right = _direction(rng)
    row, column = (int(n) for n in rng.integers(1, GRID + 1, 2))
    answer = _place_at(row + down, column + right) or NOTHING
    return Turn("step", f"Where is {words} {_place_at(row, column)}?", answer)


def ask_beside(scene: Scene, fresh: list[Thing], rng: np.random.Generator) -> Turn | None:
    """Which place is beside an object."""
    thing = choose([thing for thing in fresh if describe(scene, thing)], rng)
    if thing is None:
        return None
    words, down, right = _direction(rng)
    answer = _place_at(thing.row + down, thing.column + right) or NOTHING
    return Turn("beside", f"Where is {words} the {describe(scene, thing)}?", answer, (thing,))


def ask_neighbour(_scene: Scene, fresh: list[Thing], rng: np.random.Generator) -> Turn | None:
    """What is beside a place."""
    thing = choose(fresh, rng)
    if thing is None:
        return None
    words, down, right = _direction(rng)
    place = _place_at(thing.row - down, thing.column - right)
    if place is None:
        return None
    return Turn("neighbour", f"What is {words} {place}?", f"{thing.colour} {thing.kind}", (thing,))


def ask_row(scene: Scene, _fresh: list[Thing], rng: np.random.Generator) -> Turn:
    """The digits of a row, from left to right."""
    row = int(rng.integers(1, GRID + 1))
    digits = [thing.kind for thing in scene.things if thing.is_digit and thing.row == row]
    return Turn("row", f"Which digits are in row {row}?", " ".join(digits) or NOTHING)


def ask_row_sum(scene: Scene, _fresh: list[Thing], rng: np.random.Generator) -> Turn | None:
    """The digits of a row that has exactly two."""
    rows = [[int(t.kind) for t in scene.things if t.row == row and t.is_digit] for row in range(1, GRID + 1)]
    row = choose([index + 1 for index, digits in enumerate(rows) if len(digits) == 2], rng)
    if row is None:
        return None
    return Turn("row_sum", f"What is the sum of row {row}?", str(sum(rows[row - 1])))


def ask_tally(scene: Scene, _fresh: list[Thing], rng: np.random.Generator) -> Turn:
    """Counting over the whole picture or a row too, which is harder than what the data asks for."""
    form = int(rng.integers(4))
    if form == 0:
        digits = bool(rng.integers(2))
        count = sum(thing.is_digit == digits for thing in scene.things)
        return Turn("tally", f"How many {'digits' if digits else 'shapes'} are there?", str(count))
    if form == 1:
        row = int(rng.integers(1, GRID + 1))
        return Turn("tally", f"How many objects are in row {row}?", str(sum(t.row == row for t in scene.things)))
    if form == 2:
        shape = SHAPES[int(rng.integers(len(SHAPES)))]
        plural = "crosses" if shape == "cross" else f"{shape}s"
        return Turn("tally", f"How many {plural} are there?", str(sum(t.kind == shape for t in scene.things)))
    colour = COLOUR_NAMES[int(rng.integers(len(COLOUR_NAMES)))]
    return Turn("tally", f"How many objects are {colour}?", str(sum(t.colour == colour for t in scene.things)))


def ask_add(_scene: Scene, _fresh: list[Thing], rng: np.random.Generator) -> Turn:
    """Two digits added, no picture needed."""
    first, second = (int(n) for n in rng.integers(0, 10, 2))
    return Turn("add", f"What is the sum of {first}, {second}?", str(first + second))


LESSONS: dict[str, Asker] = {
    **ASKERS,
    "step": ask_step,
    "beside": ask_beside,
    "neighbour": ask_neighbour,
    "row": ask_row,
    "row_sum": ask_row_sum,
    "tally": ask_tally,
    "add": ask_add,
}
"""Every kind of question a plan of training may ask for."""
