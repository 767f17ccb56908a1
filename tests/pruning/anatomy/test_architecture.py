"""Architectures: documents are read strictly, and those of another model are refused."""

from typing import Any

import pytest

from pruning.anatomy.architecture import DENSE, Architecture, Option, Site, Sublayer
from pruning.errors import InputError
from pruning.planning import prices
from pruning.planning.cost import achieved_costs
from tests.pruning.made_up import made_up_anatomy

ATTENTION, FFN = Sublayer.ATTENTION, Sublayer.FFN


def test_a_document_and_back() -> None:
    document = [
        {"index": 1, "ffn": {"units": 8, "bits": 4}, "attention": {"units": 0}},
        {"index": 3, "ffn": {"units": 1}},
    ]
    architecture = Architecture.from_document(document)
    assert architecture.options == {
        Site(1, FFN): Option(8, bits=4),
        Site(1, ATTENTION): Option(0),
        Site(3, FFN): Option(1),
    }
    assert architecture.document() == document
    assert Architecture.from_document([]) == DENSE


@pytest.mark.parametrize(
    "document",
    [
        None,
        {},
        "many",
        [{}],
        [None],
        [{"index": 0}],
        [{"ffn": {"units": 8}}],
        *([{"index": index, "ffn": {"units": 8}}] for index in (0.5, -1, True, "0", 2**63)),
        *([{"index": 0, "ffn": {"units": units}}] for units in ("many", -5, 8.0, None, 2**63)),
        [{"index": 0, "ffn": {}}],
        [{"index": 0, "ffn": 8}],
        [{"index": 0, "fnn": {"units": 8}}],
        [{"index": 0, "ffn": {"units": 8}, "fnn": {"units": 8}}],
        [{"index": 0, "ffn": {"units": 8, "heads": 2}}],
        [{"index": 0, "ffn": {"units": 8, "bits": None}}],  # which is what its absence says
        [{"index": 0, "ffn": {"units": 8, "bits": 17}}],
        [{"index": 0, "ffn": {"units": 8, "density": float("nan")}}],
        [{"index": 0, "ffn": {"units": 0, "bits": 4}}],
        [{"index": 0, "ffn": {"units": 8}}, {"index": 0, "ffn": {"units": 16}}],
        [{"index": 0, "ffn": {"units": 8}}, {"index": 0, "attention": {"units": 1}}],
        [{"index": 1, "ffn": {"units": 8}}, {"index": 0, "ffn": {"units": 8}}],
    ],
)
def test_what_is_no_document_of_an_architecture_is_refused(document: Any) -> None:
    with pytest.raises(InputError, match="an architecture is a list of layers"):
        Architecture.from_document(document)


@pytest.mark.parametrize(
    ("site", "option", "dense"),
    [
        (Site(7, FFN), Option(8), None),
        (Site(2, ATTENTION), Option(1), None),
        (Site(0, FFN), Option(65), 64),
        (Site(1, ATTENTION), Option(3), 2),
        (Site(0, FFN), Option(-1), 64),
    ],
)
def test_an_architecture_of_another_model_is_refused(site: Site, option: Option, dense: int | None) -> None:
    anatomy, architecture = made_up_anatomy([64, 64]), Architecture.of({site: option})
    said = rf"names sites of its model.*layer {site.layer}, {site.sublayer}: .*units={option.units}.*dense {dense}"
    with pytest.raises(InputError, match=said):
        prices.parameters(anatomy).cost(architecture)
    with pytest.raises(InputError, match=said):
        achieved_costs(anatomy, architecture)
    if dense is None:
        with pytest.raises(InputError, match=said):
            architecture.units(site.sublayer, anatomy.dense_units(site.sublayer))
