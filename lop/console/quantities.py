"""Sizes, times and operation counts as people write them, read strictly: a number and a unit of the right kind."""

import re
import reprlib
from collections.abc import Mapping
from decimal import Decimal

from pruning.errors import InputError
from pruning.planning.plan_parts import INT64_MAX

_BYTES = {
    "B": 1,
    "kB": 1000,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", start=1)},
    **{f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", start=1)},
}
_MILLISECONDS: dict[str, int | Decimal] = {"us": Decimal("0.001"), "ms": 1, "s": 1000}
_OPERATIONS = {prefix: 1000**power for power, prefix in enumerate("KMGTP", start=1)}

_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", re.ASCII)


def parse_bytes(text: str) -> int:
    """Whole bytes: "6GiB" are 6 x 2^30, "3GB" are 3 x 10^9; raises InputError."""
    return int(_parse(text, _BYTES, least=1, kind="a size", example="6GiB or 3GB"))


def parse_milliseconds(text: str) -> float:
    """Milliseconds: "200ms", "1.5s"; raises InputError."""
    return float(_parse(text, _MILLISECONDS, least=Decimal("0.000001"), kind="a time", example="200ms or 1.5s"))


def parse_operations(text: str) -> int:
    """Operations: "2T" are 2 x 10^12; raises InputError."""
    return int(_parse(text, _OPERATIONS, least=1, kind="a number of operations", example="2T or 500G"))


def _parse(text: str, units: Mapping[str, int | Decimal], *, least: int | Decimal, kind: str, example: str) -> Decimal:
    match = _QUANTITY.fullmatch(text.strip())
    unit = None if match is None else units.get(match[2])
    if match is None or unit is None or Decimal(match[1]) * unit < least:
        raise InputError(
            f"{kind} is a number above zero and one of the units {', '.join(units)}",
            values=reprlib.repr(text),
            remedy=f"Write {example}",
        )
    found = Decimal(match[1]) * unit
    if found > INT64_MAX:
        raise InputError(
            f"{kind} fits 64 bits",
            values=reprlib.repr(text),
            remedy=f"Ask for less than {INT64_MAX}, such as {example}",
        )
    return found
