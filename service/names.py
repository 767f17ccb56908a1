"""What names look like in requests."""

import ipaddress

from pruning.errors import InputError

NAME_PATTERN = r"^[^\x00-\x1f\x7f]+$"
"""Control characters name nothing, and PostgreSQL cannot store a NUL."""

_OWN_SEGMENT = "ranking"
"""The last segment of the path of a model's ranking."""


def check_new_id(model_id: str) -> None:
    """Raises InputError for an id under which nothing could be fetched over HTTP: it is part of a URL's path there."""
    segments = model_id.split("/")
    reason = None
    if "" in segments:
        reason = "begins or ends with a slash, or has two in a row, which proxies and clients make one of"
    elif found := {".", ".."}.intersection(segments):
        reason = f"has the segment {min(found)!r}, which clients take out of a URL"
    elif len(segments) > 1 and segments[-1] == _OWN_SEGMENT:
        reason = f"ends in /{_OWN_SEGMENT}, where the ranking of {'/'.join(segments[:-1])!r} would be"
    if reason is not None:
        raise InputError(
            "a model's id must be what a URL can carry",
            values=f"{model_id!r} {reason}",
            remedy="Choose another id: names with single slashes between them, such as llava-hf/llava-1.5-7b-hf",
        )


def is_loopback_name(name: str) -> bool:
    """Whether only this machine is meant by a name or an address, which has no brackets."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
