"""FFN widths, KV groups and whole sub-layers: what changing all of them together is worth over each alone.

On the reference and on SmolLM2-135M-Instruct (bfloat16), at 15, 30, 45 and 60% of the decoder removed, and at 80, 65
and 50% of the dense model's time on this machine: the search, the predictor, the additive integer program, evolution,
ShortGPT and uniform cuts, in the spaces ffn, attention, layers and all, with equal scored tokens. Validation KL,
agreement and exact match; validation conversations judge, and decide nothing.

Takes nine and a half hours on two cores, in parts of which most take less than two; SmolLM2's `predictors` took 164
minutes (`minutes_by_part` in the summary has each). Kill it anywhere and run it again: what was measured is kept under
benchmarks/.work/axes, and finished parts are read. Searches lose no more than one evaluation, a training what it did
since its last checkpoint, `budgets` the hundreds of plans that it was at; other parts begin anew.
A part whose code has changed since is done again, which measures nothing that is known. `--part` and `--model` do some
of it; `axes.json` is only written of all, `axes-partial.json` otherwise. `--fresh` forgets everything.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import axes_families, axes_http, axes_speed
from benchmarks.axes_budgets import axes_budgets
from benchmarks.axes_gguf import gguf_joint
from benchmarks.axes_latency import axes_latency
from benchmarks.axes_models import Sizes
from benchmarks.axes_parts import PARTS, ModelRun
from benchmarks.axes_picture import draw_axes
from benchmarks.axes_scan import scan_evaluations_32_layers
from benchmarks.axes_summary import summary_of
from benchmarks.carried import TAKEN
from benchmarks.machine import COMMIT_AT_START, RESULTS_DIR, write_results
from benchmarks.steps import Steps, alone_in

WORK = Path(__file__).parent / ".work" / "axes"
SEED = 0

SIZES = {
    "reference": Sizes(conversations=128, validation=None, evaluations=80),
    "smollm2": Sizes(conversations=24, validation=48, evaluations=48, evolution_everywhere=False),
}
"""An evaluation takes 1.8 CPU seconds on 128 conversations of the reference, 5 on 24 of SmolLM2 (a fifth less in a
search, whose configurations begin alike), 2.5 and 13 on validation. The reference has some 4,300 of the former and 250
of the latter, SmolLM2 2,200 and 220; trainings and what is planned come on top. So few conversations, evaluations and
rows of evolution as SmolLM2 has are for the time's sake: on the reference there is time for all."""


@dataclass(frozen=True)
class OtherPart:
    """A part that measures something else of joint plans, and keeps what it has to by itself.

    Attributes:
        measure: figures for the summary; `rows` among them are listed under the part's name.
        runs: modules that run in processes of its own.
    """

    measure: Callable[[], dict[str, Any]]
    runs: tuple[str, ...] = ()


OTHER_PARTS = {
    "profile": OtherPart(axes_latency),
    "budgets": OtherPart(axes_budgets),
    "speed": OtherPart(axes_speed.speed_at_half, axes_speed.RUNS),
    "http": OtherPart(axes_http.http_joint, axes_http.RUNS),
    "gguf": OtherPart(gguf_joint),
    "families": OtherPart(axes_families.families_joint, axes_families.RUNS),
}
"""By name, in the order in which they run."""


def main(
    part: Annotated[list[str] | None, typer.Option(help=f"Only these: {', '.join([*PARTS, *OTHER_PARTS])}.")] = None,
    model: Annotated[list[str] | None, typer.Option(help=f"Only these: {', '.join(SIZES)}.")] = None,
    conversations: Annotated[int | None, typer.Option(min=8, help="That searches score on, of each model.")] = None,
    validation: Annotated[int | None, typer.Option(min=8, help="That judge, of each model.")] = None,
    evaluations: Annotated[int | None, typer.Option(min=2, help="A target, its share of the scan included.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what earlier runs have measured.")] = False,
) -> None:
    """Write results/axes.json and axes.png."""
    parts, models = _chosen("part", part, [*PARTS, *OTHER_PARTS]), _chosen("model", model, list(SIZES))
    given = {"conversations": conversations, "validation": validation, "evaluations": evaluations}
    changed: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    sizes = {name: replace(SIZES[name], **changed) for name in models}
    with alone_in(WORK) as lock:
        if fresh:
            _forget()
        steps = Steps(WORK / "steps", lock=lock, renew=True)
        found = dict(_run(parts, sizes, steps))
    whole = len(parts) == len(PARTS) + len(OTHER_PARTS) and sizes == SIZES
    summary, rows = _result(found, steps)
    summary["settings"] = {"seed": SEED, "sizes": {name: asdict(of) for name, of in sizes.items()}}
    name = "axes" if whole else "axes-partial"
    path = write_results(name, summary, rows, earlier=[step.code for step in steps.finished.values()])
    if searched := _searched(rows):
        draw_axes(searched, RESULTS_DIR / f"{name}.png")
    print(json.dumps({**summary, "results": str(path)}))  # noqa: T201


def _chosen(what: str, names: list[str] | None, known: list[str]) -> list[str]:
    """All that are known, or those of `names`, in their usual order."""
    if unknown := [name for name in names or () if name not in known]:
        raise typer.BadParameter(f"a {what} is one of {', '.join(known)}: {', '.join(unknown)}")
    return [name for name in known if not names or name in names]


def _forget() -> None:
    """All but the lock, and what takes no part in figures: the model and its answers. What was carried here is not
    read again."""
    for path in WORK.iterdir():
        if path.name in ("lock", TAKEN, "smollm2"):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _run(parts: list[str], sizes: Mapping[str, Sizes], steps: Steps) -> Iterator[tuple[str, dict[str, Any]]]:
    """What each part found, by its name; a model is let go before the next one is loaded."""
    for name, of in sizes.items():
        run = ModelRun(name, of, SEED, WORK, steps)
        key = [json.dumps(asdict(of)), str(SEED)]
        for part in parts:
            if part in PARTS:
                label = f"{name} {part}"
                yield label, steps.call(label, key, partial(PARTS[part], run), modules=[ModelRun.__module__]).document
    for part in parts:
        if part in OTHER_PARTS:
            other = OTHER_PARTS[part]
            modules = (other.measure.__module__, *other.runs)
            yield part, steps.call(part, [], other.measure, modules=modules).document


def _result(found: Mapping[str, dict[str, Any]], steps: Steps) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary and the rows."""
    rows: list[dict[str, Any]] = []
    others: dict[str, Any] = {"scan_evaluations_32_layers": scan_evaluations_32_layers()}
    details: dict[str, Any] = {}
    for name, document in found.items():
        figures = dict(document)
        own = figures.pop("rows", [])
        if name in OTHER_PARTS:
            rows += [{"part": name, **row} for row in own]
            others |= figures
        else:
            rows += own
            details[name] = figures
    summary = summary_of(_searched(rows), others)
    seconds = {name: step.seconds for name, step in steps.finished.items()}
    return {
        **summary,
        "details": details,
        "minutes": sum(seconds.values()) / 60,
        "minutes_by_part": {name: of / 60 for name, of in seconds.items()},
        "parts_of_other_commits": sorted(n for n, step in steps.finished.items() if step.commit != COMMIT_AT_START),
    }, rows


def _searched(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without those of other parts."""
    return [row for row in rows if "part" not in row]


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command(help=__doc__)(main)
    app()
