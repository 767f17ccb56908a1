"""A scene: which object stands in which cell. Sampling and pictures."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from reference.glyphs import CELLS, COLOUR_NAMES, DIGITS, EMPTY, GRID, KINDS, PLACES, render_cells
from reference.scans import Pool

MIN_OBJECTS, MAX_OBJECTS = 8, 10
_DIGIT_SHARE = 0.6


@dataclass(frozen=True)
class Thing:
    """One object: a digit or a shape, with its colour and its cell (rows and columns count from 1)."""

    kind: str
    colour: str
    row: int
    column: int

    @property
    def is_digit(self) -> bool:
        return self.kind in DIGITS

    @property
    def place(self) -> str:
        """The letter of its cell: A to P in reading order."""
        return PLACES[(self.row - 1) * GRID + self.column - 1]


@dataclass(frozen=True)
class Scene:
    """Objects on the grid, at most one a cell, in reading order."""

    things: tuple[Thing, ...]

    @cached_property
    def by_place(self) -> dict[tuple[int, int], Thing]:
        return {(thing.row, thing.column): thing for thing in self.things}

    def arrays(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Contents and colours, int64 [C] each, as the renderer wants them."""
        contents = np.full(CELLS, EMPTY, dtype=np.int64)
        colours = np.zeros(CELLS, dtype=np.int64)
        for thing in self.things:
            cell = (thing.row - 1) * GRID + thing.column - 1
            contents[cell] = KINDS.index(thing.kind)
            colours[cell] = COLOUR_NAMES.index(thing.colour)
        return contents, colours


def sample_scene(rng: np.random.Generator) -> Scene:
    """A random scene of MIN_OBJECTS to MAX_OBJECTS objects."""
    count = int(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1))
    cells = np.sort(rng.permutation(CELLS)[:count])
    digits = rng.random(count) < _DIGIT_SHARE
    digit_kind = rng.integers(0, len(DIGITS), count)
    shape_kind = rng.integers(len(DIGITS), len(KINDS), count)
    kinds = np.where(digits, digit_kind, shape_kind)
    colours = rng.integers(0, len(COLOUR_NAMES), count)
    return Scene(
        tuple(
            Thing(KINDS[kind], COLOUR_NAMES[colour], int(cell) // GRID + 1, int(cell) % GRID + 1)
            for kind, colour, cell in zip(kinds, colours, cells, strict=True)
        )
    )


def render_scenes(scenes: list[Scene], pool: Pool, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Pictures of scenes: uint8 [N, IMAGE_PX, IMAGE_PX, 3]."""
    arrays = [scene.arrays() for scene in scenes]
    contents = np.stack([content for content, _ in arrays])
    colours = np.stack([colour for _, colour in arrays])
    return render_cells(contents, colours, pool, rng)
