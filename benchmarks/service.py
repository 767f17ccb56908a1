"""The service held against what it promises: `results/service.json`.

In parts, each of at most 90 minutes on two cores that do nothing else (estimates):

- `speed` (20 minutes): known plans against a hello-world, new ones beside a search, two servers against one;
- `budgets` (80 minutes): a million random requests through the solver, 10,000 through the planner;
- `fuzz` (80 minutes): 100,000 requests of schemathesis, with and without keys, on SQLite and PostgreSQL;
- `kill` (80 minutes): 1,000 SIGKILLs over servers, workers and PostgreSQL;
- `soak` (35 minutes): mixed traffic;
- `page` (5 minutes): the page in headless Chromium, with axe-core.

What a part has finished is kept, step by step: kill it anywhere and run it again. The result has the parts asked for
and those that were finished before. Smaller sizes are trials, which are kept apart; give them a `--results` of their
own.
"""

import json
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from benchmarks.machine import write_results
from benchmarks.service_processes import CODE
from benchmarks.steps import Steps, alone_in, say

WORK = Path(__file__).parent / ".work" / "service"

Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How much of each part is done; the defaults are what the result is to show."""

    kills: int = 1000
    requests: int = 100_000
    solved: int = 1_000_000
    planned: int = 10_000
    minutes: float = 30.0


def _parts(work: Path, steps: Steps, sizes: Sizes) -> dict[str, Callable[[], tuple[Row, list[Row]]]]:
    # A part imports what no other one needs: schemathesis, playwright.
    def speed() -> tuple[Row, list[Row]]:
        from benchmarks import service_speed

        return service_speed.speed(work / "speed", steps)

    def budgets() -> tuple[Row, list[Row]]:
        from benchmarks import service_budgets

        return service_budgets.budgets(work / "budgets", steps, solved=sizes.solved, planned=sizes.planned)

    def fuzz() -> tuple[Row, list[Row]]:
        from benchmarks import service_fuzz

        return service_fuzz.fuzz(work / "fuzz", steps, num_requests=sizes.requests)

    def kill() -> tuple[Row, list[Row]]:
        from benchmarks import service_kill

        return service_kill.kill(work / "kill", steps, num_kills=sizes.kills)

    def soak() -> tuple[Row, list[Row]]:
        from benchmarks import service_soak

        return service_soak.soak(work / "soak", steps, minutes=sizes.minutes)

    def page() -> tuple[Row, list[Row]]:
        from benchmarks import service_page

        return service_page.page(work / "page", steps)

    return {"speed": speed, "budgets": budgets, "fuzz": fuzz, "kill": kill, "soak": soak, "page": page}


PARTS = ("speed", "budgets", "fuzz", "kill", "soak", "page")


def main(
    parts: Annotated[str, typer.Option(help="What to do, by commas.")] = ",".join(PARTS),
    kills: Annotated[int, typer.Option(min=1, help="SIGKILLs.")] = Sizes.kills,
    requests: Annotated[int, typer.Option(min=100, help="Of schemathesis.")] = Sizes.requests,
    solved: Annotated[int, typer.Option(min=1, help="Budgets through the solver.")] = Sizes.solved,
    planned: Annotated[int, typer.Option(min=20, help="Budgets through the planner.")] = Sizes.planned,
    minutes: Annotated[float, typer.Option(min=0.5, help="Of mixed traffic.")] = Sizes.minutes,
    results: Annotated[str, typer.Option(help="Name of the file in benchmarks/results.")] = "service",
) -> None:
    """Write results/service.json."""
    asked = [name.strip() for name in parts.split(",") if name.strip()]
    if unknown := [name for name in asked if name not in PARTS]:
        raise typer.BadParameter(f"{', '.join(unknown)} is none of {', '.join(PARTS)}")
    sizes = Sizes(kills, requests, solved, planned, minutes)
    summary: Row = {}
    rows: list[Row] = []
    signal.signal(signal.SIGTERM, _stop)
    with alone_in(WORK) as lock:
        steps = Steps(WORK / "steps", lock=lock)
        functions = _parts(WORK, steps, sizes)
        for name in PARTS:
            key = _key(name, sizes)
            if name in asked:
                started = time.perf_counter()
                document = steps.call(f"part {name}", key, partial(_document, functions[name])).document
                say(f"part {name}: {time.perf_counter() - started:.0f} s")
            elif (kept := steps.kept(f"part {name}", key)) is not None:
                document = kept.document
            else:
                continue
            summary |= document["summary"]
            rows += document["rows"]
        earlier = [step.code for step in steps.finished.values()]
    path = write_results(results, summary, rows, runs=CODE, earlier=earlier)
    print(json.dumps({**summary, "results": str(path)}))  # noqa: T201


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (a handler's)
    """Leave as an error does: what was started is stopped."""
    sys.exit(128 + number)


def _key(part: str, sizes: Sizes) -> list[str]:
    """What a part's size is given by."""
    of = {
        "budgets": (sizes.solved, sizes.planned),
        "fuzz": (sizes.requests,),
        "kill": (sizes.kills,),
        "soak": (sizes.minutes,),
    }
    return [str(size) for size in of.get(part, ())]


def _document(part: Callable[[], tuple[Row, list[Row]]]) -> Row:
    summary, rows = part()
    return {"summary": summary, "rows": rows}


if __name__ == "__main__":
    typer.run(main)
