"""Families that are cut correctly in both halves of a layer: what the tests of every family say now.

A family is green if its tests pass in every suite of `benchmarks.families`: FFN channels and KV groups cut against a
silenced twin, from memory and from files; sub-layers skipped; and the evaluator, which slices and skips, against real
cuts. `python -m benchmarks.axes_families` prints the part's figures: three minutes on a quiet core.
"""

import json
from typing import Any

import typer

from benchmarks.families import RUNS, SUITES, family_rows

__all__ = ["RUNS", "families_joint"]


def families_joint() -> dict[str, Any]:
    """`families`, how many are green with groups and skips, and how many are not: `families_not_green` by name."""
    rows = family_rows()
    red = [row["family"] for row in rows if not row["green"] or row["suites"] < len(SUITES)]
    return {
        "families": len(rows),
        "families_green_joint": len(rows) - len(red),
        "families_red_joint": len(red),
        "families_not_green": red,
        "family_tests": sum(row["tests"] for row in rows),
    }


def main() -> None:
    """Print the part's figures as JSON."""
    print(json.dumps(families_joint(), indent=1))  # noqa: T201


if __name__ == "__main__":
    typer.run(main)
