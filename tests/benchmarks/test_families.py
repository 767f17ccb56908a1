"""The support table: its rows are the families of the tests, and the documentation has exactly these."""

import re
from xml.etree import ElementTree as ET

import pytest

from benchmarks.families import (
    BEGIN,
    CHECKPOINTS,
    DOCUMENT,
    END,
    _outcomes,
    _suites,
    family_of_test,
    table,
    with_table,
)
from tests.tiny_models import BUILDERS


def test_every_builder_has_a_row() -> None:
    assert list(CHECKPOINTS) == list(BUILDERS)


def test_the_documentation_names_the_families_that_are_tested() -> None:
    text = DOCUMENT.read_text()
    rows = text[text.index(BEGIN) : text.index(END)].splitlines()[3:]
    named = [re.match(r"\| [^|]+ \| `([^`]+)` \|", row) for row in rows]
    assert [match and match[1] for match in named] == list(BUILDERS)
    assert all(row.endswith(" passed |") for row in rows)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("test_x[llava-llama]", "llava-llama"),
        ("test_x[llava-llama-biases-sdpa]", "llava-llama-biases"),
        ("test_x[files-paligemma-mqa]", "paligemma-mqa"),
        ("test_x[gemma3-text-files]", "gemma3-text"),
        ("test_x[dtype0-qwen2.5-vl]", "qwen2.5-vl"),
        ("test_x", None),
        ("test_x[llavas]", None),
    ],
)
def test_the_family_of_a_test(name: str, family: str | None) -> None:
    assert family_of_test(name) == family


def test_one_failure_among_many_is_seen() -> None:
    report = ET.fromstring(  # noqa: S314
        "<suite><testcase name='a[llama]'/><testcase name='b[llama-sdpa]'><failure/></testcase>"
        "<testcase name='a[phi]'/><testcase name='b[phi]'><skipped/></testcase>"
        "<testcase name='a[qwen3]'><error/></testcase><testcase name='a[gemma2]'/><testcase name='other'/></suite>"
    )
    assert _outcomes(report) == {
        "llama": [True, False],
        "phi": [True, False],
        "qwen3": [False],
        "gemma2": [True],
    }


def test_a_family_is_counted_in_each_suite_that_has_tests_of_it() -> None:
    report = ET.fromstring(  # noqa: S314
        "<suite><testcase classname='cuts' name='a[llama]'/><testcase classname='cuts' name='b[llama]'/>"
        "<testcase classname='skips' name='c[llama-x]'/><testcase classname='skips' name='c[phi]'/></suite>"
    )
    assert _suites(report) == {"llama": {"cuts", "skips"}, "phi": {"skips"}}


def test_the_table_is_put_between_its_markers() -> None:
    columns = ("kv_groups", "fused", "biases", "tied", "qk_norms", "windows", "mrope", "image")
    row = {"family": "llama", "checkpoints": "Llama", "text_model_type": "llama", "tests": 3, "green": True}
    rows = [
        {**row, **dict.fromkeys(columns, False), "biases": True},
        {**row, **dict.fromkeys(columns, True), "green": False},
    ]
    document = with_table(f"before\n{BEGIN}\nold\n{END}\nafter\n", rows)
    assert document == f"before\n{BEGIN}\n{table(rows)}\n{END}\nafter\n"
    assert "old" not in document
    first, second = table(rows).splitlines()[2:]
    assert first == "| Llama | `llama` | `llama` | | | yes | | | | | | 3 passed |"
    assert second.endswith(" yes | FAILED |")
