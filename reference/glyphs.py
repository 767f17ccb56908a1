"""What can stand in a cell, its colours, and how cells become pixels.

Letters: N pictures, C cells a picture, P pixels along a cell's side. Everything is NumPy in float64 before the
final rounding, so that the same seed gives the same bytes on every machine.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from reference.scans import GLYPH_PX, Pool, load_scans

GRID = 4
CELLS = GRID * GRID
CELL_PX = 16
IMAGE_PX = GRID * CELL_PX
PLACES: tuple[str, ...] = tuple("ABCDEFGHIJKLMNOP")
"""Names of the cells in reading order: one letter is one token."""

DIGITS: tuple[str, ...] = tuple("0123456789")
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "cross", "diamond", "ring")
KINDS: tuple[str, ...] = DIGITS + SHAPES
EMPTY = len(KINDS)
"""Content class of a cell with nothing in it."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (235, 45, 45),
    "green": (40, 205, 70),
    "blue": (60, 90, 250),
    "yellow": (240, 225, 50),
    "pink": (250, 130, 200),
    "cyan": (50, 220, 230),
    "orange": (245, 140, 30),
    "white": (245, 245, 245),
}
COLOUR_NAMES: tuple[str, ...] = tuple(COLOURS)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Jitter:
    """How far a glyph may stray from the middle of its cell; training of the vision tower uses a wider one."""

    shift_px: float = 1.0
    angle_deg: float = 8.0
    scale: float = 0.08
    brightness: float = 0.15
    noise: int = 4


SCENE_JITTER = Jitter()
WIDE_JITTER = Jitter(shift_px=1.6, angle_deg=16.0, scale=0.18, brightness=0.3, noise=12)


def _draw_shape(name: str) -> npt.NDArray[np.uint8]:
    """One drawn shape: uint8 [GLYPH_PX, GLYPH_PX], bright on dark."""
    image = Image.new("L", (GLYPH_PX, GLYPH_PX), 0)
    pen = ImageDraw.Draw(image)
    low, high, mid = 3, GLYPH_PX - 4, GLYPH_PX // 2
    if name == "circle":
        pen.ellipse((low, low, high, high), fill=255)
    elif name == "square":
        pen.rectangle((low + 1, low + 1, high - 1, high - 1), fill=255)
    elif name == "triangle":
        pen.polygon([(mid, low - 1), (high + 1, high), (low - 1, high)], fill=255)
    elif name == "cross":
        pen.rectangle((mid - 4, low, mid + 3, high), fill=255)
        pen.rectangle((low, mid - 4, high, mid + 3), fill=255)
    elif name == "diamond":
        pen.polygon([(mid, low - 2), (high + 2, mid), (mid, high + 2), (low - 2, mid)], fill=255)
    else:
        pen.ellipse((low, low, high, high), fill=255)
        pen.ellipse((low + 6, low + 6, high - 6, high - 6), fill=0)
    return np.asarray(image)


@dataclass(frozen=True)
class GlyphBank:
    """Every glyph a pool may draw: its scans, then the six shapes, then an empty one.

    Attributes:
        pixels: float64 [G, GLYPH_PX, GLYPH_PX] in [0, 1].
        by_kind: for each entry of KINDS, then for EMPTY, the glyph indices that show it.
    """

    pixels: Floats
    by_kind: tuple[Ints, ...]


@lru_cache(maxsize=3)
def load_bank(pool: Pool) -> GlyphBank:
    """The glyph bank of one scan pool."""
    scans = load_scans(pool)
    shapes = np.stack([_draw_shape(name) for name in SHAPES] + [np.zeros((GLYPH_PX, GLYPH_PX), np.uint8)])
    by_kind = [np.flatnonzero(scans.digits == digit) for digit in range(10)]
    by_kind += [np.array([len(scans.digits) + i]) for i in range(len(SHAPES) + 1)]
    pixels = np.concatenate([scans.pixels, shapes]).astype(np.float64) / 255.0
    return GlyphBank(pixels=pixels, by_kind=tuple(index.astype(np.int64) for index in by_kind))


def _warp(pixels: Floats, angle: Floats, scale: Floats, shift: Floats) -> Floats:
    """Rotate, scale and shift glyphs into cells, bilinearly.

    pixels [M, S, S], angle [M] in radians, scale [M], shift [M, 2] in cell pixels -> [M, P, P].
    """
    side = pixels.shape[-1]
    grid = np.arange(CELL_PX) - (CELL_PX - 1) / 2.0
    y = grid[None, :, None] - shift[:, 1, None, None]
    x = grid[None, None, :] - shift[:, 0, None, None]
    cos = (np.cos(angle) / scale)[:, None, None] * (side / (CELL_PX - 1.0))
    sin = (np.sin(angle) / scale)[:, None, None] * (side / (CELL_PX - 1.0))
    source_x = cos * x + sin * y + side / 2.0 + 0.5  # +1 for the border of zeros, -0.5 to pixel centres
    source_y = cos * y - sin * x + side / 2.0 + 0.5
    padded = np.pad(pixels, ((0, 0), (1, 1), (1, 1)))
    source_x = np.clip(source_x, 0.0, side + 0.999)
    source_y = np.clip(source_y, 0.0, side + 0.999)
    left, top = source_x.astype(np.int64), source_y.astype(np.int64)
    right_weight, bottom_weight = source_x - left, source_y - top
    row = np.arange(len(pixels))[:, None, None]
    flat = padded.reshape(-1)
    corner = (row * (side + 2) + top) * (side + 2) + left
    upper = flat[corner] * (1.0 - right_weight) + flat[corner + 1] * right_weight
    lower = flat[corner + side + 2] * (1.0 - right_weight) + flat[corner + side + 3] * right_weight
    return np.asarray(upper * (1.0 - bottom_weight) + lower * bottom_weight)


def render_cells(
    contents: Ints, colours: Ints, pool: Pool, rng: np.random.Generator, jitter: Jitter = SCENE_JITTER
) -> npt.NDArray[np.uint8]:
    """Draw pictures from what their cells hold.

    Args:
        contents: [N, C] index into KINDS, or EMPTY.
        colours: [N, C] index into COLOUR_NAMES; ignored where a cell is empty.
        pool: whose scans to draw digits with.
        rng: chooses the scan, its jitter, the background and the noise.
        jitter: how far these may stray.

    Returns:
        uint8 [N, IMAGE_PX, IMAGE_PX, 3].
    """
    bank = load_bank(pool)
    count = len(contents)
    flat = contents.reshape(-1)
    pick = rng.random(flat.shape)
    glyph = np.array([bank.by_kind[kind][int(u * len(bank.by_kind[kind]))] for kind, u in zip(flat, pick, strict=True)])
    angle = np.deg2rad(rng.uniform(-jitter.angle_deg, jitter.angle_deg, flat.shape))
    scale = rng.uniform(1.0 - jitter.scale, 1.0 + jitter.scale, flat.shape)
    shift = rng.uniform(-jitter.shift_px, jitter.shift_px, (*flat.shape, 2))
    mask = np.zeros((len(flat), CELL_PX, CELL_PX))
    full = np.flatnonzero(flat != EMPTY)
    mask[full] = _warp(bank.pixels[glyph[full]], angle[full], scale[full], shift[full])

    palette = np.array([COLOURS[name] for name in COLOUR_NAMES], dtype=np.float64)
    brightness = rng.uniform(1.0 - jitter.brightness, 1.0, flat.shape)
    ink = palette[colours.reshape(-1)] * brightness[:, None]
    background = rng.uniform(8.0, 40.0, (count, 3)).repeat(CELLS, axis=0)
    cells = background[:, None, None, :] + mask[..., None] * (ink - background)[:, None, None, :]
    pictures = cells.reshape(count, GRID, GRID, CELL_PX, CELL_PX, 3).transpose(0, 1, 3, 2, 4, 5)
    pictures = pictures.reshape(count, IMAGE_PX, IMAGE_PX, 3)
    noise = rng.integers(-jitter.noise, jitter.noise + 1, (count, IMAGE_PX, IMAGE_PX, 1))
    return np.clip(np.rint(pictures + noise), 0, 255).astype(np.uint8)
