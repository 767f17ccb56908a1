"""Real handwritten digits, in pools that never mix.

The 1,797 scans of 8x8 pixels are the copy of the UCI optical recognition data set that scikit-learn bundles:
nothing is downloaded. Validation and test pictures use only scans that no training stage has seen.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from pruning.missing_packages import missing_extra

Pool = Literal["train", "validation", "test"]

GLYPH_PX = 32
"""Side of a glyph in the bank, in pixels: scans and drawn shapes are kept at one size."""

_POOL_SEED = 1797
_HELD_OUT = 256  # scans in each of the validation and test pools


@dataclass(frozen=True)
class Scans:
    """Digit scans of one pool.

    Attributes:
        pixels: uint8 [N, GLYPH_PX, GLYPH_PX], ink is bright.
        digits: int64 [N], the digit each scan shows.
        source: int64 [N], index in scikit-learn's data set.
    """

    pixels: npt.NDArray[np.uint8]
    digits: npt.NDArray[np.int64]
    source: npt.NDArray[np.int64]


@lru_cache(maxsize=1)
def _all_scans() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Every bundled scan, enlarged: pixels uint8 [1797, GLYPH_PX, GLYPH_PX] and digits int64 [1797]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise missing_extra(
            "reference",
            "the reference world is made of the digit scans bundled in scikit-learn, which is not installed",
        ) from error
    bundle = load_digits()
    small = np.clip(np.asarray(bundle.images) * (255.0 / 16.0), 0, 255).astype(np.uint8)
    large = [np.asarray(Image.fromarray(scan).resize((GLYPH_PX, GLYPH_PX), Image.Resampling.BICUBIC)) for scan in small]
    return np.stack(large), np.asarray(bundle.target, dtype=np.int64)


@lru_cache(maxsize=3)
def load_scans(pool: Pool) -> Scans:
    """The scans of one pool; the split is the same for every seed, so that no build can leak a test scan."""
    pixels, digits = _all_scans()
    order = np.random.default_rng(_POOL_SEED).permutation(len(digits))
    parts = {
        "validation": order[:_HELD_OUT],
        "test": order[_HELD_OUT : 2 * _HELD_OUT],
        "train": order[2 * _HELD_OUT :],
    }
    index = np.sort(parts[pool])
    return Scans(pixels=pixels[index], digits=digits[index], source=index.astype(np.int64))
