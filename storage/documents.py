"""JSON documents as the database stores them, and the key of a sample's configuration."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from pruning.errors import InputError


def canonical_json(document: dict[str, Any]) -> str:
    """The one spelling of a JSON document: sorted keys, no spaces, ASCII."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)


def json_document(document: dict[str, Any], what: str) -> dict[str, Any]:
    """A deep copy of `document` in plain JSON types; raises InputError, naming it as `what`, if it has none."""
    try:
        copy: dict[str, Any] = json.loads(json.dumps(document, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{what} must be a JSON document",
            values=str(error),
            remedy="Use only strings, finite numbers, lists, dicts",
        ) from error
    return copy


def configuration_document(widths: Sequence[int]) -> dict[str, Any]:
    """The configuration of a sample whose FFNs have `widths` [L].

    A document, not a list of widths, so that KV groups and weight bits become further keys: samples of FFN widths
    alone keep the key that they have today.
    """
    return {"ffn_widths": [int(width) for width in widths]}


def configuration_widths(document: dict[str, Any]) -> tuple[int, ...]:
    """FFN widths [L] of a stored configuration."""
    return tuple(document["ffn_widths"])


def configuration_key(document: dict[str, Any]) -> str:
    """sha256 of the canonical JSON of a configuration: 64 hex digits, whatever the number of layers."""
    return hashlib.sha256(canonical_json(document).encode()).hexdigest()
