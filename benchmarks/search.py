"""The tree search against every other allocator on the reference model, at equal achieved parameters.

Every searching method may score 300 configurations a target. The tree search begins with a one-layer scan that its
targets share: it counts, so each of the six targets gets fewer of its own. Evolution runs once more with 1,500. The
other methods see all 128 calibration conversations at once; those that search score configurations on the first few.
Every number that is reported beside `calibration_kl` comes from the validation conversations.

Finished searches are kept in benchmarks/.work and read again if the benchmark was interrupted (`--fresh` forgets them).
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import geometric_mean, median
from typing import Annotated, Any

import typer

from benchmarks.enumeration import check_against_enumeration
from benchmarks.machine import RESULTS_DIR, write_results
from benchmarks.subject import REFERENCE, Subject
from lop.pictures import draw_comparison, draw_search
from mcts.result import SearchResult
from mcts.sensitivity import scan_configurations
from mcts.settings import SearchMethod, SearchSettings
from pruning.allocators.additive_dp import additive_dp, fill_up
from pruning.allocators.allocation import Allocation
from pruning.allocators.registry import STATISTICAL_ALLOCATORS
from pruning.allocators.uniform import uniform_widths
from pruning.levels import LevelGrid
from pruning.metrics import Widths
from pruning.ranking import Ranking
from pruning.statistics import StatisticsKind

SPARSITIES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
SEEDS = (0, 1, 2)
EVALUATIONS = 300
LONG_EVALUATIONS = 1500
LONG = "evolution-1500"
ROUND_TO = 8


@dataclass(frozen=True)
class Found:
    """One row before it is validated: what `method` allocates at `sparsity`, and what that took."""

    method: str
    sparsity: float
    seed: int | None
    widths: Widths
    evaluations: int
    seconds: float
    ranking: Ranking | None = None


def main(
    conversations: Annotated[int, typer.Option(min=1, help="Calibration conversations that searches score on.")] = 16,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an interrupted run left.")] = False,
) -> None:
    """Write results/search.json, search.png (quality against sparsity) and search_progress.png."""
    started = time.perf_counter()
    subject = Subject(REFERENCE, conversations, fresh=fresh)
    grid = LevelGrid.build(subject.anatomy, round_to=ROUND_TO)
    budgets = {s: _grid_budget(grid, subject, s) for s in SPARSITIES}
    found = _without_search(subject, grid, budgets)
    progress: dict[str, dict[str, Sequence[float]]] = {}
    own = (len(SPARSITIES) * EVALUATIONS - len(scan_configurations(grid))) // len(SPARSITIES)
    runs = [(str(m), m, EVALUATIONS, seed) for m in (SearchMethod.EVOLUTION, SearchMethod.RANDOM) for seed in SEEDS]
    runs += [(str(SearchMethod.MCTS), SearchMethod.MCTS, own, seed) for seed in SEEDS]
    runs += [(LONG, SearchMethod.EVOLUTION, LONG_EVALUATIONS, SEEDS[0])]
    for name, method, evaluations, seed in runs:
        settings = SearchSettings(
            budgets=tuple(budgets.values()),
            method=method,
            num_evaluations=evaluations,
            seed=seed,
            round_to=ROUND_TO,
        )
        result, seconds = subject.search(name, settings)
        found += _rows_of(name, result, seconds, seed)
        if seed == SEEDS[0]:
            for sparsity, target in zip(SPARSITIES, result.targets, strict=True):
                progress.setdefault(f"{sparsity:.0%} of FFN channels removed", {})[name] = target.curve
        _say(f"{name} seed {seed}: {[round(t.metrics.kl, 5) for t in result.targets]}")
    rows = [_measured(subject, row) for row in found]
    check = check_against_enumeration(subject)
    summary = {**_summary(rows), "exact_check": check, "minutes": (time.perf_counter() - started) / 60}
    path = write_results("search", summary, rows)
    draw_search(progress, RESULTS_DIR / "search_progress.png")
    draw_comparison(_medians(rows), RESULTS_DIR / "search.png")
    print(json.dumps({**summary, "results": str(path)}))  # noqa: T201


def _grid_budget(grid: LevelGrid, subject: Subject, sparsity: float) -> int:
    """The most that configurations of the grid can keep: with it, every method keeps the same number of parameters."""
    unit = grid.largest_step
    return subject.budget(sparsity, ROUND_TO) // unit * unit


def _without_search(subject: Subject, grid: LevelGrid, budgets: dict[float, int]) -> list[Found]:
    """The methods that allocate from statistics or a scan. Measuring those once is part of every target's seconds."""
    found: list[Found] = []
    statistics = {kind: subject.statistics(kind) for kind in StatisticsKind}
    sensitivity, scan_seconds = subject.scan(grid)
    for sparsity, budget in budgets.items():
        uniform = uniform_widths(subject.anatomy, budget, round_to=ROUND_TO)
        found.append(Found("uniform", sparsity, None, tuple(uniform), 0, 0.0))
        before = time.perf_counter()
        levels = fill_up(grid, additive_dp(grid, sensitivity, budget)[0], budget, sensitivity)
        seconds = scan_seconds + time.perf_counter() - before
        widths = tuple(grid.widths_of(levels))
        found.append(Found("additive-dp", sparsity, None, widths, len(scan_configurations(grid)), seconds))
        for name, allocator in STATISTICAL_ALLOCATORS.items():
            measured, measuring_seconds = statistics[allocator.kind]
            before = time.perf_counter()
            allocation: Allocation = allocator.allocate(subject.anatomy, measured, budget, round_to=ROUND_TO)
            seconds = measuring_seconds + time.perf_counter() - before
            found.append(Found(name, sparsity, None, tuple(allocation.widths), 0, seconds, allocation.ranking))
    return found


def _rows_of(name: str, result: SearchResult, seconds: Sequence[float], seed: int) -> list[Found]:
    """One row a target; the scan's evaluations and seconds are divided among them."""
    share = result.scan_evaluations / len(result.targets)
    return [
        Found(name, sparsity, seed, target.widths, round(target.evaluations + share), spent)
        for sparsity, target, spent in zip(SPARSITIES, result.targets, seconds, strict=True)
    ]


def _measured(subject: Subject, row: Found) -> dict[str, Any]:
    calibration = subject.evaluate("calibration", row.widths, row.ranking)
    validation = subject.evaluate("validation", row.widths, row.ranking)
    return {
        "method": row.method,
        "sparsity": row.sparsity,
        "seed": row.seed,
        "evaluations": row.evaluations,
        "calibration_kl": calibration.kl,
        "validation_kl": validation.kl,
        "validation_accuracy": validation.accuracy,
        "seconds": row.seconds,
        "parameters": subject.kept_parameters(row.widths, row.ranking),
        "widths": list(row.widths),
    }


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What has to hold: KL ratios of the tree search's medians to the best of all others, target by target."""
    medians = {(row["method"], row["sparsity"]): row for row in _medians(rows)}
    methods = sorted({row["method"] for row in rows} - {str(SearchMethod.MCTS), LONG})
    ratios, best_others, validation_ratios = {}, {}, {}
    for sparsity in SPARSITIES:
        best = min(methods, key=lambda method: medians[method, sparsity]["calibration_kl"])
        ours = medians["mcts", sparsity]
        ratios[f"{sparsity:g}"] = ours["calibration_kl"] / medians[best, sparsity]["calibration_kl"]
        best_others[f"{sparsity:g}"] = best
        validation_ratios[f"{sparsity:g}"] = ours["validation_kl"] / min(
            medians[method, sparsity]["validation_kl"] for method in methods
        )

    def mean_kl(method: str, split: str) -> float:
        return geometric_mean(medians[method, sparsity][f"{split}_kl"] for sparsity in SPARSITIES)

    return {
        "kl_ratio_to_best_other": ratios,
        "best_other": best_others,
        "worst_kl_ratio": max(ratios.values()),
        "validation_kl_ratio_to_best_other": validation_ratios,
        "geomean_kl_mcts": mean_kl("mcts", "calibration"),
        "geomean_kl_evolution_1500": mean_kl(LONG, "calibration"),
        "geomean_ratio_to_evolution_1500": mean_kl("mcts", "calibration") / mean_kl(LONG, "calibration"),
        "validation_to_calibration_kl_mcts": mean_kl("mcts", "validation") / mean_kl("mcts", "calibration"),
        "validation_to_calibration_kl_uniform": mean_kl("uniform", "validation") / mean_kl("uniform", "calibration"),
    }


def _medians(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a method and sparsity: medians over seeds. `kl` and `accuracy`, for the picture, are of validation."""
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["sparsity"]), []).append(row)
    medians = []
    for (method, sparsity), members in groups.items():
        values = {
            key: median(row[key] for row in members)
            for key in ("calibration_kl", "validation_kl", "validation_accuracy", "seconds")
        }
        medians.append(
            {
                "method": method,
                "sparsity": sparsity,
                **values,
                "kl": values["validation_kl"],
                "accuracy": values["validation_accuracy"],
            }
        )
    return medians


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    typer.run(main)
