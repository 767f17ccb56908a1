"""Conditional requests for immutable content: entity tags and If-None-Match (RFC 9110, sections 8.8.3 and 13.1.2)."""

import re

_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')


def strong_etag(sha256: str) -> str:
    """The entity tag of content with this sha256."""
    return f'"{sha256}"'


def matches(if_none_match: str | None, etag: str) -> bool:
    """Whether the header says that the client already holds `etag`; weak and strong tags compare alike here."""
    if if_none_match is None:
        return False
    return if_none_match.strip() == "*" or etag in _TAG.findall(if_none_match)
