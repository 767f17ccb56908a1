"""storage/documents.py"""

import hashlib
import math
from typing import Any

import pytest

from pruning.anatomy.architecture import DENSE, Architecture, Option, Site, Sublayer
from pruning.errors import InputError
from storage.documents import (
    canonical_json,
    canonical_protocol,
    check_protocol,
    configuration_architecture,
    configuration_document,
    configuration_key,
    json_document,
)
from tests.storage.examples import ANATOMY

FFN, ATTENTION = Sublayer.FFN, Sublayer.ATTENTION


def test_ffn_widths_alone_keep_the_document_and_the_key_of_the_first_samples() -> None:
    document = configuration_document(ANATOMY, ANATOMY.architecture((64, 8)))
    assert canonical_json(document) == '{"ffn_widths":[64,8]}'
    assert configuration_key(document) == hashlib.sha256(b'{"ffn_widths":[64,8]}').hexdigest()
    assert configuration_document(ANATOMY, DENSE) == {"ffn_widths": [64, 64]}


def test_any_other_architecture_is_stored_as_its_own_document() -> None:
    architecture = Architecture.of({Site(1, ATTENTION): Option(1), Site(0, FFN): Option(8, bits=4)})
    document = configuration_document(ANATOMY, architecture)
    layers = '[{"ffn":{"bits":4,"units":8},"index":0},{"attention":{"units":1},"index":1}]'
    assert canonical_json(document) == f'{{"architecture":{layers}}}'
    assert configuration_key(document) == hashlib.sha256(f'{{"architecture":{layers}}}'.encode()).hexdigest()


@pytest.mark.parametrize(
    "architecture",
    [
        DENSE,
        ANATOMY.architecture((8, 64)),
        ANATOMY.architecture((0, 64)),
        ANATOMY.architecture((8, 64), (2, 1)),
        Architecture.of({Site(1, FFN): Option(64, density=0.5)}),
        Architecture.of({Site(0, ATTENTION): Option(0)}),
    ],
)
def test_an_architecture_comes_back(architecture: Architecture) -> None:
    assert configuration_architecture(ANATOMY, configuration_document(ANATOMY, architecture)) == architecture


@pytest.mark.parametrize(
    ("site", "option"),
    [(Site(2, FFN), Option(8)), (Site(0, FFN), Option(64)), (Site(1, ATTENTION), Option(2))],
)
def test_what_is_no_architecture_of_the_model_has_no_document(site: Site, option: Option) -> None:
    with pytest.raises(InputError, match="names sites of its model, and only those that are not dense"):
        configuration_document(ANATOMY, Architecture.of({site: option}))


def test_the_protocol_is_part_of_the_key() -> None:
    document = configuration_document(ANATOMY, DENSE)
    protocol = canonical_protocol([{"step": "bias"}])
    assert protocol == '[{"step":"bias"}]'
    spelt = '{"ffn_widths":[64,64],"protocol":[{"step":"bias"}]}'
    assert configuration_key(document, protocol) == hashlib.sha256(spelt.encode()).hexdigest()
    assert canonical_protocol([]) == canonical_protocol(None) == ""
    assert configuration_key(document, "") == configuration_key(document)


@pytest.mark.parametrize("protocol", ['[{"step": "bias"}]', "bias", "[]", "{", "null"])
def test_a_protocol_has_one_spelling(protocol: str) -> None:
    with pytest.raises(InputError, match="a protocol has one spelling"):
        check_protocol(protocol)


def test_json_document_is_a_deep_copy_in_json_types() -> None:
    inner = [1]
    copy = json_document({"a": inner, "b": (1.5, None)}, "it")
    inner.append(2)
    assert copy == {"a": [1], "b": [1.5, None]}


@pytest.mark.parametrize("value", [math.nan, math.inf, {1, 2}, b"bytes", object()])
def test_json_document_refuses_what_json_has_not(value: Any) -> None:
    with pytest.raises(InputError, match="the settings must be a JSON document"):
        json_document({"a": value}, "the settings")
