"""What was measured of a checkpoint, for its card: the report of its recovery."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RECOVERY_REPORT_NAME = "lop_recovery.json"
"""In a folder that `lop recover` wrote."""


def recovery_lines(folder: Path) -> list[str]:
    """What the recovery that wrote `folder` measured of it, a line each part; none where no report can be read."""
    try:
        report = json.loads((folder / RECOVERY_REPORT_NAME).read_text(encoding="utf-8"))
        return [_line(name, report[name]) for name in ("selection", "validation") if name in report]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []


def _line(name: str, part: Mapping[str, Any]) -> str:
    after, share = part["after"], part["after"]["percent_of_dense"]
    return (
        f"- {name} part of `lop recover`, {part['answers']:,} answers: {share['of']} {share['percent']:.1f}% of the "
        f"dense model's (90% interval {share['interval'][0]:.1f} to {share['interval'][1]:.1f}), KL to it "
        f"{after['kl']:.4g} nats a token"
    )
