"""Spaces of decisions: choices and architectures are each other's inverse, and a document says all of a space."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.errors import InputError
from pruning.planning.space import Decision, Options, Space
from tests.pruning.made_up_limits import draw_choice, ladders

ATTENTION, FFN = Sublayer.ATTENTION, Sublayer.FFN


def decision(*sites: tuple[Site, list[Option]]) -> Decision:
    return Decision(tuple(site for site, _ in sites), tuple(Options.of(options) for _, options in sites))


# Layer 0 is kept, thinned or skipped as a whole; layer 1 chooses width, bits and density, and never keeps all.
WHOLE_LAYER = decision(
    (Site(0, ATTENTION), [Option(0), Option(1), Option(2)]), (Site(0, FFN), [Option(0), Option(64), Option(64)])
)
BITS = decision((Site(1, FFN), [Option(8), Option(64, bits=4), Option(64, bits=8), Option(64, bits=8, density=0.5)]))
SPACE = Space((WHOLE_LAYER, BITS), {Site(0, ATTENTION): 2, Site(0, FFN): 64, Site(1, FFN): 64})


def test_what_is_dense_is_absent_from_an_architecture() -> None:
    assert SPACE.architecture((1, 2)) == Architecture.of({Site(0, ATTENTION): Option(1), Site(1, FFN): Option(64, 8)})
    assert SPACE.architecture((2, 0)) == Architecture.of({Site(1, FFN): Option(8)})
    assert SPACE.architecture((0, 3)).document() == [
        {"index": 0, "attention": {"units": 0}, "ffn": {"units": 0}},
        {"index": 1, "ffn": {"units": 64, "bits": 8, "density": 0.5}},
    ]


@pytest.mark.parametrize("choice", [(a, b) for a in range(3) for b in range(4)])
def test_choices_and_architectures_are_inverse(choice: tuple[int, int]) -> None:
    assert SPACE.choice_of(SPACE.architecture(choice)) == choice


@pytest.mark.parametrize(
    "options",
    [
        {},  # dense: layer 1 has no such option
        {Site(1, FFN): Option(16)},
        {Site(1, FFN): Option(64, bits=2)},
        {Site(1, FFN): Option(8, density=0.5)},
        {Site(1, FFN): Option(8), Site(0, FFN): Option(0)},  # the FFN of layer 0 goes with its attention only
        {Site(1, FFN): Option(8), Site(2, FFN): Option(8)},  # of no decision
    ],
)
def test_what_is_no_point_of_the_space_has_no_choice(options: dict[Site, Option]) -> None:
    assert SPACE.choice_of(Architecture.of(options)) is None


def test_the_ends_and_the_counts_of_a_ragged_space() -> None:
    assert SPACE.counts.tolist() == [3, 4]
    assert (SPACE.bottom, SPACE.top) == ((0, 0), (2, 3))
    assert SPACE.units_of((1, 0)) == (1, 8)
    assert SPACE.dense_units.tolist() == [2, 64]


def test_the_widest_that_is_not_above() -> None:
    space = ladders([8, 16, 24, 32], [8, 16, 24, 30])
    assert space.at_most([23.9, 29]).tolist() == [1, 2]
    assert space.at_most([0, 1000]).tolist() == [0, 3]
    assert space.at_most([24, 8]).tolist() == [2, 0]


def test_without_what_is_narrower() -> None:
    space = ladders([8, 16, 24, 32], [8, 16, 24, 30]).not_below([16, 17])
    assert [row.tolist() for row in space.units] == [[16, 24, 32], [24, 30]]
    assert space.dense == {Site(0, FFN): 32, Site(1, FFN): 30}
    assert [row.tolist() for row in ladders([8, 16]).not_below([99]).units] == [[16]]


def test_taking_options_takes_all_of_them() -> None:
    taken = BITS.take(np.array([3, 0]))
    assert list(taken.options[0]) == [Option(64, bits=8, density=0.5), Option(8)]


def test_tables_add_up_the_sites_of_a_decision() -> None:
    tables = SPACE.tables(lambda site, options: options.units * (100 if site.sublayer is ATTENTION else 1))
    assert [row.tolist() for row in tables] == [[0, 164, 264], [8, 64, 64, 64]]


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Decisions of one site or of both of a layer, of units with bits and densities or without."""
    decisions: list[Decision] = []
    dense: dict[Site, int] = {}
    for layer in range(draw(st.integers(1, 4))):
        ways: list[list[tuple[Sublayer, ...]]] = [[(FFN,)], [(ATTENTION,)], [(ATTENTION,), (FFN,)], [(ATTENTION, FFN)]]
        together = draw(st.sampled_from(ways))
        for sublayers in together:
            count = draw(st.integers(1, 4))
            option = st.just(Option(0)) | st.builds(
                Option, st.integers(1, 63), st.none() | st.integers(2, 16), st.none() | st.sampled_from([0.25, 0.5])
            )
            lists = st.lists(st.tuples(*[option] * len(sublayers)), min_size=count, max_size=count, unique=True)
            drawn: list[tuple[Option, ...]] = draw(lists)
            rows = list(zip(*drawn, strict=True))
            sites = [Site(layer, sublayer) for sublayer in sublayers]
            decisions.append(decision(*((site, list(row)) for site, row in zip(sites, rows, strict=True))))
            dense |= {site: draw(st.sampled_from([63, 64])) for site in sites}
    return Space(tuple(decisions), dense)


@given(spaces(), st.data())
def test_a_document_says_all_of_a_space(space: Space, data: st.DataObject) -> None:
    again = Space.from_document(json.loads(json.dumps(space.document())))
    assert again.document() == space.document()
    choice = draw_choice(data, space)
    architecture = space.architecture(choice)
    assert again.architecture(choice) == architecture
    assert again.choice_of(architecture) == space.choice_of(architecture) == choice
    assert Architecture.from_document(json.loads(json.dumps(architecture.document()))) == architecture
    assert Architecture.from_document(architecture.document()).key == architecture.key


@pytest.mark.parametrize(
    ("space", "of_ladders"),
    [
        (ladders([8, 16], [5]), True),
        (ladders([16, 8]), False),
        (ladders([8, 8]), False),
        (Space((WHOLE_LAYER,), SPACE.dense), False),
        (Space((BITS,), SPACE.dense), False),
    ],
)
def test_ladders_ascend_in_units_of_one_site_alone(space: Space, of_ladders: bool) -> None:
    assert space.of_ladders is of_ladders


def test_the_document_worked_out_by_hand() -> None:
    assert SPACE.document() == {
        "decisions": [
            [
                {"layer": 0, "sublayer": "attention", "dense": 2, "units": [0, 1, 2]},
                {"layer": 0, "sublayer": "ffn", "dense": 64, "units": [0, 64, 64]},
            ],
            [
                {
                    "layer": 1, "sublayer": "ffn", "dense": 64, "units": [8, 64, 64, 64],
                    "bits": [None, 4, 8, 8], "density": [None, None, None, 0.5],
                }
            ],
        ]
    }  # fmt: skip


GOOD = {"layer": 0, "sublayer": "ffn", "dense": 64, "units": [8, 64]}


BAD: tuple[dict[str, Any], ...] = (
    {"units": []},
    {"units": None},
    {"units": [[8], [64]]},
    {"units": [8, 1.5]},
    {"units": [8, -1]},
    {"units": [8, True]},
    {"units": [8, 2**70]},
    {"units": "88"},
    {"sublayer": "head"},
    {"layer": "first"},
    {"layer": float("inf")},
    {"layer": -1},
    {"dense": None},
    {"bits": [4]},
    {"density": 0.5},
    {"bits": ["x", {}]},
    {"bits": [4, 17]},
    {"bits": [4, True]},
    {"bits": [None, None]},  # which is what its absence says
    {"density": [float("nan"), 0.5]},
    {"density": [0.5, 7]},
    {"density": [0.5, 0.0]},
    {"units": [0, 8], "bits": [4, 4]},  # bits of what is skipped
    {"units": [8, 65]},
    {"densty": [0.5, None]},
)


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        None,
        {"decisions": None},
        {"decisions": []},
        {"decisions": [[GOOD]], "of": "tiny"},
        {"decisions": [[]]},
        {"decisions": [[GOOD], [GOOD]]},  # a site that is decided twice
        {"decisions": [[GOOD, GOOD]]},
        {"decisions": [[GOOD, {**GOOD, "sublayer": "attention", "units": [1]}]]},
        *({"decisions": [[{**GOOD, **bad}]]} for bad in BAD),
        {"decisions": [[{name: value for name, value in GOOD.items() if name != "dense"}]]},
    ],
)
def test_what_is_no_space_is_refused(document: Any) -> None:
    with pytest.raises(InputError, match="list of decisions"):
        Space.from_document(document)
