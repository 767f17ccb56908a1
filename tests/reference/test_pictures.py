"""Scans never change pools, and pictures show what the scene says."""

import builtins
from typing import Any

import numpy as np
import pytest

from pruning.errors import MissingExtraError
from reference import scans
from reference.glyphs import CELL_PX, CELLS, COLOURS, EMPTY, IMAGE_PX, KINDS, load_bank, render_cells
from reference.scans import load_scans
from reference.scenes import render_scenes, sample_scene


def test_scan_pools_are_disjoint_and_complete() -> None:
    train, validation, test = (set(load_scans(pool).source.tolist()) for pool in ("train", "validation", "test"))
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert len(train | validation | test) == 1797


def test_no_scan_of_one_pool_is_pixel_for_pixel_in_another() -> None:
    held = {scan.tobytes() for pool in ("validation", "test") for scan in load_scans(pool).pixels}
    assert not held & {scan.tobytes() for scan in load_scans("train").pixels}


def test_every_pool_has_every_digit() -> None:
    for pool in ("train", "validation", "test"):
        assert all(len(index) > 0 for index in load_bank(pool).by_kind)
        assert len(load_bank(pool).by_kind) == len(KINDS) + 1


def test_pictures_depend_on_the_seed_alone() -> None:
    scenes = [sample_scene(np.random.default_rng(seed)) for seed in range(3)]
    first = render_scenes(scenes, "train", np.random.default_rng(1))
    again = render_scenes(scenes, "train", np.random.default_rng(1))
    assert first.shape == (3, IMAGE_PX, IMAGE_PX, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, render_scenes(scenes, "train", np.random.default_rng(2)))


def test_a_lone_object_lights_its_own_cell_in_its_own_colour() -> None:
    contents = np.full((1, CELLS), EMPTY)
    contents[0, 6] = KINDS.index("circle")
    colours = np.full((1, CELLS), list(COLOURS).index("green"))
    picture = render_cells(contents, colours, "train", np.random.default_rng(0))[0].astype(int)
    cells = picture.reshape(4, CELL_PX, 4, CELL_PX, 3).transpose(0, 2, 1, 3, 4).reshape(CELLS, -1, 3)
    brightest = cells.max(axis=(1, 2))
    assert brightest.argmax() == 6
    assert np.delete(brightest, 6).max() < 60
    red, green, blue = cells[6].mean(axis=0)
    assert green > 2 * red
    assert green > blue


def test_missing_scikit_learn_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=r"pip install \"lop-service\[reference\]\""):
        scans._all_scans.__wrapped__()
