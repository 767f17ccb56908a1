"""Spans of time as options give them."""

import re
from datetime import timedelta

from pruning.errors import InputError

_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def time_span(text: str) -> timedelta:
    """Such as 12h, 30d or 52w. Raises InputError for anything else."""
    found = re.fullmatch(r"(\d{1,5})([hdw])", text)
    if found is None:
        raise InputError("a time span is hours, days or weeks", values=repr(text), remedy="Write 12h, 30d or 52w")
    return int(found[1]) * _UNITS[found[2]]
