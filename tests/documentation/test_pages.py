"""The pages that the code writes, and the navigation: nothing is missing, nothing is out of date."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

import lop
from documentation.__main__ import SETTINGS_PAGE
from documentation.commands_page import commands, commands_page
from documentation.http_page import http_page
from documentation.python_page import python_page
from documentation.settings_page import service_variables, settings_page
from service.settings import Settings
from tests.documentation.blocks import PAGES, ROOT
from tests.documentation.commands_check import openapi

CODE = ("lop", "service", "storage", "engines", "values", "recovery", "pruning", "policy_model", "mcts")


def test_the_settings_page_is_what_the_code_writes() -> None:
    assert SETTINGS_PAGE.read_text(encoding="utf-8") == settings_page(), "run `python -m documentation`"


def test_the_settings_page_has_a_row_for_all_that_is_read() -> None:
    assert len(service_variables()) == len(Settings.model_fields)
    read = {
        name
        for package in CODE
        for path in (ROOT / package).rglob("*.py")
        for name in re.findall(r"""(?:environ(?:\.get\(|\[)|envvar=|VARIABLE = )["'](LOP_\w+)""", path.read_text())
    }
    assert {"LOP_KEY", "LOP_MODEL_ROOTS", "LOP_SECOND_ORDER"} <= read
    page = settings_page()
    assert {name for name in read if f"| `{name}` |" not in page} == set()


def test_defaults_bounds_and_choices_are_told() -> None:
    page = settings_page()
    assert "| `LOP_PORT` | whole number, 0 to 65535 | `8000` |" in page
    assert "| `LOP_LOG_LEVEL` | `debug`, `info`, `warning`, `error` | `info` |" in page
    assert "| `LOP_HARNESS_PYTHON` | path | |" in page


def test_the_commands_page_has_every_command_and_option() -> None:
    page = commands_page()
    names = [command.name for command in commands()]
    assert {"plan", "model add", "job list", "export gguf", "db backup"} <= set(names)
    assert [name for name in names if f"## `lop {name}`\n" not in page] == []
    assert "| `--sparsity`, `-s` |" in page
    assert "| `CHECKPOINT` |" in page or "| `FOLDER` |" in page
    assert all(option.help for command in commands() for option in command.options)


def test_the_http_page_has_every_path_and_links_that_lead_somewhere() -> None:
    page = http_page(openapi())
    operations = [(method, path) for path, known in openapi()["paths"].items() for method in known]
    assert [x for x in operations if f"## `{x[0].upper()} {x[1]}`\n" not in page] == []
    headings = {found.lower() for found in re.findall(r"^### (\S+)$", page, re.MULTILINE)}
    assert set(re.findall(r"\(#([^)]+)\)", page)) <= headings
    assert "][" not in page  # a shape, which MkDocs would take for a link


def test_the_python_page_has_every_public_name() -> None:
    page = python_page()
    assert [name for name in lop.__all__ if f"## `lop.{name}`\n" not in page] == []
    assert "::: lop.client.Client\n" in page


def _pages(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    inner = entry.values() if isinstance(entry, dict) else entry
    return [page for part in inner for page in _pages(part)]


def test_every_page_is_in_the_navigation() -> None:
    made = {"reference/commands.md", "reference/http.md", "reference/python.md", "measured.md"}
    found = _pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    stored = {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")}
    assert sorted(found) == sorted(stored | made)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    inside = [link for link in links if "://" not in link]
    assert [link for link in inside if not (page.parent / link).exists()] == []


def test_the_page_of_what_was_measured_leads_to_pages_and_files_of_the_site() -> None:
    links = re.findall(r"\]\(([^)#\s]+)", (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8"))
    inside = {link for link in links if "://" not in link}
    assert inside
    assert [link for link in inside if not link.startswith(("../docs/", "results/"))] == []
