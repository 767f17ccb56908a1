"""No budget is exceeded: a million random requests through the solver and the exact costs, 10,000 through the planner.

Requests are those of `axes_budgets` (every space, sparsities, one limit and several, the catalogue's devices), of the
reference's anatomy; each choice is priced by `pruning.planning.cost`, not by the tables that the solver keeps to. Those
through the whole planner are `truth`'s: each plan's model is built on the meta device and counted again.
"""

import multiprocessing
import random
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

from benchmarks.axes_budgets import BudgetMaker, measured_profile
from benchmarks.steps import Steps, say
from benchmarks.subject import REFERENCE
from benchmarks.truth import RUNS, measure_truth
from benchmarks.truth_subjects import register_large, register_machine, register_reference
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.devices.device import profiled_device
from pruning.devices.profile import parse_profile
from pruning.planning.make_plan import exceeded_limits
from storage.sql_repository import open_repository

SOLVED, PLANNED, SAVED = 1_000_000, 10_000, 12
CHUNK, STEP = 2_000, 100_000
"""Requests of a process's turn, and of a step that is kept."""

Row = dict[str, Any]


def budgets(folder: Path, steps: Steps, *, solved: int = SOLVED, planned: int = PLANNED) -> tuple[Row, list[Row]]:
    """Summary and rows."""
    modules = (__name__, *RUNS)
    checkpoint = REFERENCE / "model"
    profile = steps.call("budgets machine", [], partial(_profile, checkpoint), modules=modules).document["profile"]
    rows = []
    for start in range(0, solved, STEP):
        count = min(STEP, solved - start)
        run = partial(_solve, checkpoint, profile, start, count)
        row = steps.call(f"budgets solved {start}", [str(count)], run, modules=modules).document
        rows.append({"part": "budgets", "through": "solver", **row})
    run = partial(_plan, folder, planned)
    row = steps.call("budgets planned", [str(planned)], run, modules=modules).document
    rows.append({"part": "budgets", "through": "planner", **row})
    return {
        "budgets_exceeded": sum(row["exceeded"] for row in rows),
        "budgets_solved": sum(row["requests"] for row in rows[:-1]),
        "budgets_planned": row["requests"],
        "budgets_cost_errors": row["cost_errors"],
    }, rows


def _profile(checkpoint: Path) -> Row:
    return {"profile": measured_profile(checkpoint).model_dump_json()}


def _solve(checkpoint: Path, profile: str, start: int, count: int) -> Row:
    sizes = [min(CHUNK, count - done) for done in range(0, count, CHUNK)]
    seeds = [f"service {start + done}" for done in range(0, count, CHUNK)]
    found: list[str] = []
    # Processes that are forked may hold locks of torch's threads.
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        for broken in pool.map(_exceeded, repeat(checkpoint), repeat(profile), sizes, seeds):
            found += broken
    say(f"budgets: {start + count} solved, {len(found)} of the last {count} exceeded")
    return {"requests": count, "exceeded": len(found), "examples": found[:9]}


def _exceeded(checkpoint: Path, profile: str, count: int, seed: str) -> list[str]:
    """What exceeds its request, in a process of its own."""
    import torch

    torch.set_num_threads(1)
    maker = BudgetMaker(
        read_anatomy(checkpoint), profiled_device(parse_profile(profile)), random.Random(seed).getrandbits(63)
    )
    made = (maker.make() for _ in range(count))
    return [
        f"{one.request.model_dump(mode='json', exclude_none=True)}: {exceeded}"
        for one in made
        if (exceeded := exceeded_limits(one.plan.target, one.plan.achieved))
    ]


def _plan(folder: Path, count: int) -> Row:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("budgets.db*"):
        old.unlink()
    url = f"sqlite:///{folder / 'budgets.db'}"
    with open_repository(url, create=True) as repository:
        subjects = [register_reference(repository, REFERENCE), register_large(repository, folder / "large")]
        register_machine(repository, subjects[0])
    _, summary = measure_truth(url, subjects, num_requests=count, num_saved=SAVED)
    return {
        "requests": summary["requests"],
        "exceeded": summary["budget_violations"],
        "cost_errors": summary["cost_errors"],
        "examples": summary["violations"],
    }
