"""Sizes, times and operation counts, as typed."""

import pytest

from lop.console.quantities import parse_bytes, parse_milliseconds, parse_operations
from pruning.errors import InputError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1B", 1),
        ("6GiB", 6 * 2**30),
        ("3GB", 3 * 10**9),
        ("1.5 GiB", 3 * 2**29),
        ("0.1GB", 10**8),
        ("512KiB", 2**19),
        ("2kB", 2000),
        ("2KB", 2000),
        ("7MB", 7 * 10**6),
        ("7MiB", 7 * 2**20),
        ("1TB", 10**12),
        (" 1TiB ", 2**40),
        ("9007199254740993B", 9007199254740993),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(("text", "expected"), [("200ms", 200.0), ("1.5s", 1500.0), ("2 s", 2000.0), ("250us", 0.25)])
def test_times(text: str, expected: float) -> None:
    assert parse_milliseconds(text) == expected


@pytest.mark.parametrize(("text", "expected"), [("2T", 2 * 10**12), ("0.5P", 5 * 10**14), ("3 G", 3 * 10**9)])
def test_operations(text: str, expected: int) -> None:
    assert parse_operations(text) == expected


NO_SIZES = (
    *("", "GB", "6", "-6GB", "+6GB", "6 GB 3", "6GB3MB", "6gb", "6Gb", "6GBs", "6e9B", "nanGB", "infB", "1,5GB"),
    *(".5GB", "5.GB", "0GB", "0.0B", "٦GB", "6ms", "0x10B", "6 G B"),
)


@pytest.mark.parametrize("text", NO_SIZES)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match="a number above zero and one of the units B, kB, KB") as caught:
        parse_bytes(text)
    assert caught.value.values == repr(text)


@pytest.mark.parametrize("text", ["200", "6GiB", "0ms", "-1s", "1min", "1m"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(InputError, match="a time is"):
        parse_milliseconds(text)


@pytest.mark.parametrize("text", ["2", "2TB", "2TFLOPS", "2t", "0G"])
def test_what_is_no_number_of_operations(text: str) -> None:
    with pytest.raises(InputError, match="a number of operations is"):
        parse_operations(text)


def test_a_fraction_of_a_byte_is_no_size() -> None:
    assert parse_bytes("1.9B") == 1
    with pytest.raises(InputError):
        parse_bytes("0.4B")
