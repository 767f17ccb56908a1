"""JSON documents as the database stores them, and what a sample is of as one of them."""

import hashlib
import json
from typing import Any

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Option
from pruning.errors import InputError


def canonical_json(document: Any) -> str:
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


def canonical_protocol(steps: Any) -> str:
    """The one spelling of what was done to a model after cutting, a JSON document; of nothing the empty text."""
    return canonical_json(steps) if steps else ""


def check_protocol(protocol: str) -> None:
    """Raises InputError unless `protocol` is spelt as `canonical_protocol` spells it: else one thing had two keys."""
    try:
        is_canonical = not protocol or canonical_protocol(json.loads(protocol)) == protocol
    except ValueError:
        is_canonical = False
    if not is_canonical:
        raise InputError(
            "a protocol has one spelling",
            values=repr(protocol),
            remedy="Spell it with storage.documents.canonical_protocol",
        )


def configuration_document(anatomy: ModelAnatomy, architecture: Architecture) -> dict[str, Any]:
    """How the configuration of a sample is stored: all FFN widths [L] where nothing else changes, as ever since the
    first samples, or else the architecture's own document.

    Raises InputError for an architecture that names a layer which the model has not, or a site that is dense.
    """
    widths = anatomy.ffn_widths_alone(architecture)
    if widths is not None:
        return {"ffn_widths": list(widths)}
    for site, option in architecture.items:
        if site.layer >= anatomy.num_layers or option == Option(anatomy.dense_units(site.sublayer)[site.layer]):
            raise InputError(
                "an architecture names sites of its model, and only those that are not dense",
                values=f"layer {site.layer}, {site.sublayer}, {option} in a model of {anatomy.num_layers} layers",
                remedy="Make it with ModelAnatomy.architecture or Space.architecture",
            )
    return {"architecture": architecture.document()}


def configuration_architecture(anatomy: ModelAnatomy, document: dict[str, Any]) -> Architecture:
    """The inverse of `configuration_document`."""
    if "ffn_widths" in document:
        return anatomy.architecture(document["ffn_widths"])
    return Architecture.from_document(document["architecture"])


def configuration_key(document: dict[str, Any], protocol: str = "") -> str:
    """sha256 of the canonical JSON of a configuration, and of the protocol if there is one: 64 hex digits."""
    whole = document | {"protocol": json.loads(protocol)} if protocol else document
    return hashlib.sha256(canonical_json(whole).encode()).hexdigest()
