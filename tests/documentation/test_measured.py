"""README's table of what was measured says what the results say."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
HEADING = "## What was measured"

FIGURES = (
    ("predictor", "validation_ratio_new_targets", "validation_ratio_new_targets_worst"),
    (
        "search",
        "models.reference.validation_geomean_vs_best_other",
        "models.second.validation_geomean_vs_best_other",
    ),
    ("real", "validation_geomean_vs_best_other", "lop_validation_geomean_vs_best_other"),
    ("axes", "models.reference.joint_vs_best_single", "models.smollm2.joint_vs_best_single"),
    ("axes", "models.reference.joint_vs_milp", "models.smollm2.joint_vs_milp"),
    ("axes", "models.reference.lop_vs_search", "models.smollm2.lop_vs_search"),
    ("predictor", "http_p50_ms_reference", "http_p50_ms_32_layers"),
    ("axes", "http_p50_ms_joint_32_layers"),
    ("apply", "peak_rss_gb", "time_ratio"),
    ("runtimes", "families_run_transformers", "families_run_llama_cpp", "families_run_vllm"),
    ("service", "cached_plan_rps_vs_hello"),
    ("service", "lost", "doubled", "stuck"),
)
"""Of each row in turn: the result, and the keys of its summary that the numbers are, dots between those of tables in
tables."""


@cache
def rows(heading: str = HEADING) -> list[list[str]]:
    """Cells of the rows of the table under a heading of README, without its head."""
    section = (ROOT / "README.md").read_text().partition(heading)[2].partition("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


@cache
def summary(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    return dict(document["summary"])


def figure(name: str, key: str) -> float:
    found: Any = summary(name)
    for part in key.split("."):
        found = found[part]
    return float(found)


def test_every_row_is_held_to_a_result() -> None:
    assert len(rows()) == len(FIGURES)


@pytest.mark.parametrize("number", range(len(FIGURES)))
def test_rows_say_what_was_measured(number: int) -> None:
    of, measured, where = rows()[number]
    name, *keys = FIGURES[number]
    assert where == f"`{name}`", of
    told = re.findall(r"\d*\.?\d+", measured)
    assert len(told) == len(keys), (of, measured)
    for text, key in zip(told, keys, strict=True):
        decimals = len(text.partition(".")[2])
        assert round(figure(name, key), decimals) == pytest.approx(float(text)), (of, key)


def test_what_pruning_costs_is_what_was_measured() -> None:
    document = json.loads((ROOT / "benchmarks" / "results" / "real.json").read_text())
    at = {(row["method"], row["sparsity"]): row for row in document["rows"] if "method" in row}
    kl, agreement, uniform = rows("## What it costs in quality")
    sparsities = (0.1, 0.2, 0.3, 0.4, 0.5)
    assert [float(cell) for cell in kl[1:]] == [round(at["lop", s]["kl"], 2) for s in sparsities]
    for method, cells in (("lop", agreement[1:]), ("uniform", uniform[1:])):
        assert cells == [f"{at[method, s]['agreement']:.0%}" for s in sparsities]
    assert document["commit"].startswith("847b54d")  # as the text above the table says
