"""storage/documents.py"""

import hashlib
import math
from typing import Any

import pytest

from pruning.errors import InputError
from storage.documents import (
    canonical_json,
    configuration_document,
    configuration_key,
    configuration_widths,
    json_document,
)


def test_configuration_key_is_the_hash_of_its_canonical_json() -> None:
    document = configuration_document((64, 8))
    assert canonical_json(document) == '{"ffn_widths":[64,8]}'
    assert configuration_key(document) == hashlib.sha256(b'{"ffn_widths":[64,8]}').hexdigest()
    assert configuration_widths(document) == (64, 8)


def test_key_does_not_depend_on_the_order_of_axes() -> None:
    one = configuration_key({"ffn_widths": [8], "kv_groups": [2]})
    assert one == configuration_key({"kv_groups": [2], "ffn_widths": [8]})
    assert one != configuration_key({"ffn_widths": [8]})


def test_json_document_is_a_deep_copy_in_json_types() -> None:
    inner = [1]
    copy = json_document({"a": inner, "b": (1.5, None)}, "it")
    inner.append(2)
    assert copy == {"a": [1], "b": [1.5, None]}


@pytest.mark.parametrize("value", [math.nan, math.inf, {1, 2}, b"bytes", object()])
def test_json_document_refuses_what_json_has_not(value: Any) -> None:
    with pytest.raises(InputError, match="the settings must be a JSON document"):
        json_document({"a": value}, "the settings")
