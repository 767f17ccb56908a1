"""What a table of configurations shows, by what could be changed."""

import pytest

from lop.console.kept_columns import kept_columns
from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.planning.axis_spaces import SpaceName
from tests.pruning.made_up import made_up_anatomy

ANATOMY = made_up_anatomy([64, 64, 64])
WIDTH, GROUPS = ANATOMY.layers[0].ffn_width, ANATOMY.layers[0].num_kv_groups
KEPT = Architecture.of(
    {
        Site(0, Sublayer.FFN): Option(16, bits=4),
        Site(1, Sublayer.FFN): Option(0),
        Site(1, Sublayer.ATTENTION): Option(1, bits=8),
        Site(2, Sublayer.FFN): Option(WIDTH, density=0.25),
    }
)
WIDTHS, KV_GROUPS = f"16 0 {WIDTH}", f"{GROUPS} 1 {GROUPS}"
BITS = {"FFN bits (-: as they are)": "4 - -", "attention bits (-: as they are)": "- 8 -"}


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        (SpaceName.FFN, {"FFN widths": WIDTHS}),
        (SpaceName.ATTENTION, {"KV groups": KV_GROUPS}),
        (SpaceName.LAYERS, {"FFN widths": WIDTHS, "KV groups": KV_GROUPS}),
        (SpaceName.ALL, {"FFN widths": WIDTHS, "KV groups": KV_GROUPS}),
        (SpaceName.BITS, BITS),
        (SpaceName.ALL_BITS, {"FFN widths": WIDTHS, "KV groups": KV_GROUPS, **BITS}),
        (SpaceName.DENSITY, {"FFN densities": "1 1 0.25", "attention densities": "1 1 1"}),
    ],
)
def test_what_could_be_changed_is_shown(axes: SpaceName, expected: dict[str, str]) -> None:
    assert kept_columns(axes, ANATOMY, KEPT) == expected


def test_every_space_shows_something() -> None:
    assert all(kept_columns(axes, ANATOMY, Architecture()) for axes in SpaceName)
