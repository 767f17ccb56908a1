"""Second-order statistics, single weights set to zero, and few bits: what they are worth, all by KL on validation.

On the reference and on SmolLM2-135M-Instruct (`benchmarks.second_order_models`). Kill it anywhere and run it again:
every figure is a step that is kept under benchmarks/.work/second-order, with the code that it ran. Most take seconds or
minutes; a search of densities goes on from its samples; `memory` is one run, of half an hour at most.
`second-order.json` is only written of all, `second-order-partial.json` otherwise. By estimate, in minutes on two cores
that do 150 GFLOPS together and nothing else, the reference and SmolLM2 together (a part of one model: `--model`):

- `cuts` (25): uniform cuts of FFN channels, with and without the others taking over (`benchmarks.second_order_cuts`);
  SmolLM2's answers, which all parts need, are a fifth of it;
- `elimination` (30): the same by the order of elimination;
- `ecoflap` (65): Wanda and SparseGPT, with ECoFLaP's ratios and uniform ones (`benchmarks.second_order_ecoflap`);
- `densities` (50): searched ratios against ECoFLaP's (`benchmarks.second_order_densities`);
- `joint` (85): units and bits under one budget of bytes (`benchmarks.second_order_joint`);
- `reload` (10): what plans with bits write, in transformers and llama.cpp (`benchmarks.second_order_written`);
- `memory` (25): `lop apply --reconstruct` on 1.7 GB (`benchmarks.second_order_memory`).

The summary has each figure of the worse model (`benchmarks.second_order_figures`) and, as `intervals`, how sure ratios
of sparse rows are (`benchmarks.second_order_sparse_figures`). A session whose machine goes takes along what it has
measured by `python -m benchmarks.carried second-order`.
"""

import json
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import second_order_memory, second_order_written
from benchmarks.machine import COMMIT_AT_START, RESULTS_DIR, write_results
from benchmarks.second_order_cuts import BY_ELIMINATION, CUTS, PLAIN, SPARSITIES, cut_figures, cut_rows
from benchmarks.second_order_densities import searched_rows
from benchmarks.second_order_ecoflap import SparseModel, ecoflap_rows
from benchmarks.second_order_figures import Found, summary_of
from benchmarks.second_order_joint import SHARES, JointModel, joint_figures, joint_rows, kept_smallest
from benchmarks.second_order_memory import memory_figures, memory_rows
from benchmarks.second_order_models import MODELS, Model, prepared
from benchmarks.second_order_picture import draw_second_order
from benchmarks.second_order_sparse_figures import ecoflap_figures, interval_table, searched_figures, with_intervals
from benchmarks.second_order_written import reload_figures, reload_rows
from benchmarks.steps import Step, Steps, alone_in

WORK = Path(__file__).parent / ".work" / "second-order"
SMOLLM2 = Path(__file__).parent / ".work" / "real" / "checkpoint"

ECOFLAP, DENSITIES, MEMORY = "ecoflap", "densities", "memory"
PARTS = ("cuts", "elimination", ECOFLAP, DENSITIES, "joint", "reload", MEMORY)
"""In the order in which they run; the last one is of no model."""

Rows = dict[str, list[dict[str, Any]]]
"""By part."""


def main(
    part: Annotated[list[str] | None, typer.Option(help=f"Only these: {', '.join(PARTS)}.")] = None,
    model: Annotated[list[str] | None, typer.Option(help=f"Only these: {', '.join(MODELS)}.")] = None,
    checkpoint: Annotated[Path, typer.Option(help="Where SmolLM2 is, or is made.")] = SMOLLM2,
    sparsity: Annotated[list[float] | None, typer.Option(help="Of the parts cuts and elimination.")] = None,
    share: Annotated[list[float] | None, typer.Option(help="Of bytes, in the parts joint and reload.")] = None,
    conversations: Annotated[int | None, typer.Option(min=2, help="Of each kind, only the first N: a trial.")] = None,
    results: Annotated[str, typer.Option(help="Another name for the files in benchmarks/results.")] = "",
    renew: Annotated[bool, typer.Option("--renew", help="Do again what was measured with other code.")] = False,
) -> None:
    """Write results/second-order.json and .png."""
    parts, models = _chosen("part", part, PARTS), _chosen("model", model, MODELS)
    sparsities, shares = tuple(sparsity or SPARSITIES), tuple(share or SHARES)
    rows: Rows = {name: [] for name in parts}
    done: dict[tuple[str, str], Steps] = {}
    with alone_in(WORK) as lock:

        def steps_of(name: str, label: str) -> Steps:
            """Those of each part are apart, to know how long it took."""
            return done.setdefault((name, label), Steps(_folder(name, conversations) / "steps", lock=lock, renew=renew))

        for name in models if set(parts) - {MEMORY} else []:
            of = prepared(name, checkpoint, _folder(name, conversations), steps_of(name, "answers"), conversations)
            for asked in parts:
                if asked != MEMORY:
                    rows[asked] += _rows(asked, of, steps_of(name, asked), sparsities, shares)
        if MEMORY in parts:
            rows[MEMORY] += memory_rows(_folder(MEMORY, conversations), steps_of(MEMORY, MEMORY), conversations)
    of_both = with_intervals(rows.get(ECOFLAP, []), rows.get(DENSITIES, []))
    rows |= {name: own for name, own in zip((ECOFLAP, DENSITIES), of_both, strict=True) if name in rows}
    kept = _by_part(done)
    minutes = {label: sum(step.seconds for step in own) / 60 for label, own in kept.items()}
    summary = {
        **summary_of(figures(rows)),
        "intervals": interval_table(list(chain(*of_both))),
        "minutes": sum(minutes.values()),
        "minutes_by_part": minutes,
        "parts_of_other_commits": sorted(x for x, own in kept.items() if {y.commit for y in own} - {COMMIT_AT_START}),
    }
    whole = (parts, models, conversations) == (list(PARTS), list(MODELS), None)
    whole = whole and (sparsities, shares) == (SPARSITIES, SHARES)
    every = _without_twins(rows)
    file = results or ("second-order" if whole else "second-order-partial")
    earlier = [step.code for own in kept.values() for step in own]
    runs = [*second_order_written.RUNS, *second_order_memory.RUNS]
    path = write_results(file, summary, every, earlier=earlier, runs=runs)
    draw_second_order(every, RESULTS_DIR / f"{file}.png")
    print(json.dumps({**summary, "results": str(path)}))  # noqa: T201


def figures(rows: Mapping[str, list[dict[str, Any]]]) -> Found:
    """All that the rows of these parts give."""
    found: dict[str, Mapping[str, float | None]] = {}
    of_cuts = [*rows.get("cuts", []), *rows.get("elimination", [])]
    of_weights = [*rows.get(ECOFLAP, []), *rows.get(DENSITIES, [])]
    for make, own in (
        (cut_figures, of_cuts),
        (ecoflap_figures, rows.get(ECOFLAP, [])),
        (searched_figures, of_weights if rows.get(DENSITIES) else []),
        (joint_figures, rows.get("joint", [])),
        (reload_figures, rows.get("reload", [])),
        (memory_figures, rows.get(MEMORY, [])),
    ):
        found |= make(own) if own else {}
    return found


def _rows(
    part: str, model: Model, steps: Steps, sparsities: tuple[float, ...], shares: tuple[float, ...]
) -> list[dict[str, Any]]:
    if part in ("cuts", "elimination"):
        return cut_rows(model, steps, CUTS if part == "cuts" else BY_ELIMINATION, sparsities)
    if part == ECOFLAP:
        return ecoflap_rows(SparseModel.of(model), model.key, steps)
    if part == DENSITIES:
        return searched_rows(SparseModel.of(model), model.key, steps)
    joint = JointModel.of(model)
    if part == "joint":
        return joint_rows(joint, model.key, steps, shares)
    return reload_rows(joint, model.key, steps, kept_smallest(joint, model.key, steps, shares[-1]))


def _by_part(done: Mapping[tuple[str, str], Steps]) -> dict[str, list[Step]]:
    """The steps of each part of each model, without those that an earlier part of that model has as well."""
    found: dict[str, list[Step]] = {}
    seen: set[tuple[str, str]] = set()
    for (name, label), steps in done.items():
        own = {(name, step): of for step, of in steps.finished.items() if (name, step) not in seen}
        seen |= own.keys()
        found[f"{name} {label}"] = list(own.values())
    return found


def _without_twins(rows: Rows) -> list[dict[str, Any]]:
    """All of them: the plain cuts, which two parts have, once."""
    return [
        row
        for part, own in rows.items()
        for row in own
        if part != "elimination" or row["variant"] != PLAIN.name or "cuts" not in rows
    ]


def _folder(name: str, limit: int | None) -> Path:
    """Of a model; hidden if it is of a trial, which `benchmarks.carried` leaves behind."""
    return WORK / (name if limit is None else f".{name}-{limit}")


def _chosen(what: str, names: list[str] | None, known: tuple[str, ...]) -> list[str]:
    """All that are known, or those of `names`, in their usual order."""
    if unknown := [name for name in names or () if name not in known]:
        raise typer.BadParameter(f"a {what} is one of {', '.join(known)}: {', '.join(unknown)}")
    return [name for name in known if not names or name in names]


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command(help=__doc__)(main)
    app()
