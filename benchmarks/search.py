"""The tree search against every other allocator on the reference model, at equal achieved parameters.

Every searching method may score 300 configurations a target. The tree search begins with a one-layer scan that its
targets share: it counts, so each of the six targets gets fewer of its own. `evolution` starts from equal retention,
as published; `evolution-dp` starts from the optimum of that scan, and pays for it in the same way. `mcts-single` is
the tree search with one target at a time, which pays for the whole scan. Evolution runs once more with 1,500. The
other methods see all 128 calibration conversations at once; those that search score configurations on the first few.
Every number that is reported beside `calibration_kl` comes from the validation conversations.

The search's constants were chosen on other calibration conversations of the same model (97th to 112th), other seeds,
and on analytic landscapes. Finished searches are kept in benchmarks/.work and read again by the same code if the
benchmark was interrupted (`--fresh` forgets them).
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean, median
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.enumeration import check_against_enumeration
from benchmarks.machine import RESULTS_DIR, write_results
from benchmarks.subject import REFERENCE, Subject
from lop.console.pictures import draw_comparison, draw_search
from mcts.result import SearchResult, TargetResult
from mcts.sensitivity import scan_choices
from mcts.settings import SearchMethod, SearchSettings, SearchTarget
from pruning.allocators.additive_dp import cost_to_go
from pruning.allocators.allocation import Allocation
from pruning.allocators.evolution import evolve
from pruning.allocators.registry import STATISTICAL_ALLOCATORS
from pruning.allocators.uniform import uniform_choice
from pruning.arrays import FloatArray, IntArray
from pruning.measuring.metrics import Widths
from pruning.measuring.statistics import StatisticsKind
from pruning.planning.ffn_spaces import ffn_levels, ffn_widths
from pruning.planning.limits import Limits
from pruning.planning.prices import ffn_parameters
from pruning.planning.ranking import Ranking
from pruning.planning.space import Space
from pruning.planning.target import ffn_parameter_limits

SPARSITIES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
SEEDS = (0, 1, 2)
EVALUATIONS = 300
LONG_EVALUATIONS = 1500
LONG = "evolution-1500"
OURS = "mcts"
NOT_RIVALS = (OURS, "mcts-single", LONG)
NUM_LEVELS = 8
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


@dataclass(frozen=True)
class Run:
    """One search of all targets: the name of its rows, and what it may do. `first` is what its curves begin at."""

    name: str
    method: SearchMethod
    evaluations: int
    seed: int
    first: int = 0
    one_by_one: bool = False
    from_dp: bool = False


def main(
    reference: Annotated[Path, typer.Option(help="Folder with model/ and data/.")] = REFERENCE,
    conversations: Annotated[int, typer.Option(min=1, help="Calibration conversations that searches score on.")] = 14,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an interrupted run left.")] = False,
) -> None:
    """Write results/search.json, search.png (quality against sparsity) and search_progress.png."""
    started = time.perf_counter()
    subject = Subject(reference, conversations, fresh=fresh)
    check = check_against_enumeration(subject)
    _say(f"enumeration: {check['optima_found']} of {check['targets']} optima found")
    space = ffn_levels(subject.anatomy, num_levels=NUM_LEVELS, round_to=ROUND_TO)
    budgets = {s: _level_budget(space, subject, s) for s in SPARSITIES}
    found = _without_search(subject, space, budgets)
    curves: dict[str, dict[str, Sequence[float]]] = {}
    first: dict[str, int] = {}
    for run in _runs(len(scan_choices(space))):
        result, seconds = _search(subject, space, run, list(budgets.values()))
        found += _rows_of(run, result, seconds)
        if run.seed == SEEDS[0]:
            first[run.name] = run.first
            for sparsity, target in zip(SPARSITIES, result.targets, strict=True):
                curves.setdefault(f"{sparsity:.0%} of FFN channels removed", {})[run.name] = target.curve
        _say(f"{run.name} seed {run.seed}: {[round(t.metrics.kl, 5) for t in result.targets]}")
    rows = [_measured(subject, row) for row in found]
    summary = {**_summary(rows, check), "exact_check": check, "minutes": (time.perf_counter() - started) / 60}
    path = write_results("search", summary, rows)
    draw_search(curves, RESULTS_DIR / "search_progress.png", first=first)
    draw_comparison(_medians(rows), RESULTS_DIR / "search.png")
    print(json.dumps({**summary, "results": str(path)}))  # noqa: T201


def _runs(scan: int) -> list[Run]:
    """The searches; `scan` evaluations are shared by the targets of those that begin with them."""
    shared = -(-scan // len(SPARSITIES))
    own = EVALUATIONS - shared
    runs = []
    for seed in SEEDS:
        runs.append(Run(OURS, SearchMethod.MCTS, own, seed, first=shared))
        runs.append(Run("evolution", SearchMethod.EVOLUTION, EVALUATIONS, seed))
        runs.append(Run("evolution-dp", SearchMethod.EVOLUTION, own, seed, first=shared, from_dp=True))
        runs.append(Run("random", SearchMethod.RANDOM, EVALUATIONS, seed))
    alone = EVALUATIONS - scan
    runs.append(Run("mcts-single", SearchMethod.MCTS, alone, SEEDS[0], first=scan, one_by_one=True))
    runs.append(Run(LONG, SearchMethod.EVOLUTION, LONG_EVALUATIONS, SEEDS[0]))
    return runs


def _search(subject: Subject, space: Space, run: Run, budgets: Sequence[int]) -> tuple[SearchResult, list[float]]:
    """The result and each target's seconds, those of the scan divided among the targets that share it."""
    if run.from_dp:
        return _evolve_from_dp(subject, space, run, budgets)
    results, seconds = [], []
    for group in [[budget] for budget in budgets] if run.one_by_one else [list(budgets)]:
        settings = SearchSettings(
            budgets=tuple(group),
            method=run.method,
            num_evaluations=run.evaluations,
            seed=run.seed,
            num_levels=NUM_LEVELS,
            round_to=ROUND_TO,
        )
        result, spent = subject.search(run.name, settings)
        results.append(result)
        seconds += spent
    targets = tuple(target for result in results for target in result.targets)
    return SearchResult(targets, sum(result.scan_evaluations for result in results)), seconds


def _evolve_from_dp(
    subject: Subject, space: Space, run: Run, budgets: Sequence[int]
) -> tuple[SearchResult, list[float]]:
    """Evolution whose first parent is the optimum of the additive program."""
    sensitivity, scan_seconds = subject.scan(space)
    targets, seconds = [], []
    for index, budget in enumerate(budgets):
        started = time.perf_counter()
        limits = ffn_parameter_limits(subject.anatomy, space, budget)
        start = tuple(_additive_optimum(limits, sensitivity).tolist())
        rng = np.random.default_rng([run.seed, index])
        scored = evolve(limits, subject.score(space), run.evaluations, rng, start=start)
        targets.append(TargetResult.of(SearchTarget(f"budget {budget}", budget, None), space, scored))
        seconds.append(time.perf_counter() - started + scan_seconds / len(budgets))
    return SearchResult(tuple(targets), len(scan_choices(space))), seconds


def _additive_optimum(limits: Limits, loss: FloatArray) -> IntArray:
    """[N] the choice of least summed `loss` [N, K], filled up."""
    spare = int(limits.spare[0])
    return limits.fit(cost_to_go(limits.table, loss, spare).best_choice(spare), -loss)


def _level_budget(space: Space, subject: Subject, sparsity: float) -> int:
    """The most that choices of the space can keep: with it, every method keeps the same number of parameters."""
    unit = max(int(np.diff(row).max()) for row in space.tables(ffn_parameters(subject.anatomy).of))
    return subject.budget(sparsity, ROUND_TO) // unit * unit


def _without_search(subject: Subject, space: Space, budgets: dict[float, int]) -> list[Found]:
    """The methods that allocate from statistics or a scan. Measuring those once is part of every target's seconds."""
    found: list[Found] = []
    statistics = {kind: subject.statistics(kind) for kind in StatisticsKind}
    sensitivity, scan_seconds = subject.scan(space)
    fine = ffn_widths(subject.anatomy, round_to=ROUND_TO)
    for sparsity, budget in budgets.items():
        uniform = uniform_choice(ffn_parameter_limits(subject.anatomy, fine, budget))
        found.append(Found("uniform", sparsity, None, fine.units_of(uniform), 0, 0.0))
        before = time.perf_counter()
        levels = _additive_optimum(ffn_parameter_limits(subject.anatomy, space, budget), sensitivity)
        seconds = scan_seconds + time.perf_counter() - before
        widths = space.units_of(levels)
        found.append(Found("additive-dp", sparsity, None, widths, len(scan_choices(space)), seconds))
        for name, allocator in STATISTICAL_ALLOCATORS.items():
            measured, measuring_seconds = statistics[allocator.kind]
            before = time.perf_counter()
            price = ffn_parameters(subject.anatomy, compensates=allocator.compensates)
            limits = Limits(fine, (price.limit(fine, budget),))
            allocation: Allocation = allocator.allocate(subject.anatomy, measured, limits)
            seconds = measuring_seconds + time.perf_counter() - before
            widths = subject.anatomy.ffn_widths(allocation.architecture)
            found.append(Found(name, sparsity, None, widths, 0, seconds, allocation.ranking))
    return found


def _rows_of(run: Run, result: SearchResult, seconds: Sequence[float]) -> list[Found]:
    """One row a target; the scan's evaluations are divided among them."""
    share = result.scan_evaluations / len(result.targets)
    return [
        Found(run.name, sparsity, run.seed, target.widths, round(target.evaluations + share), spent)
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
        "validation_agreement": validation.agreement,
        "seconds": row.seconds,
        "parameters": subject.kept_parameters(row.widths, row.ranking),
        "achieved_sparsity": 1 - subject.kept_parameters(row.widths, row.ranking) / subject.anatomy.ffn_parameters,
        "widths": list(row.widths),
    }


def _summary(rows: Sequence[dict[str, Any]], check: dict[str, Any]) -> dict[str, Any]:
    """What has to hold: KL ratios of the tree search's medians to the best of all others, target by target."""
    medians = {(row["method"], row["sparsity"]): row for row in _medians(rows)}
    rivals = sorted({row["method"] for row in rows} - set(NOT_RIVALS))
    ratios, best_others, validation_ratios = {}, {}, {}
    for sparsity in SPARSITIES:
        best = min(rivals, key=lambda method: medians[method, sparsity]["calibration_kl"])
        ours = medians[OURS, sparsity]
        ratios[f"{sparsity:g}"] = ours["calibration_kl"] / medians[best, sparsity]["calibration_kl"]
        best_others[f"{sparsity:g}"] = best
        validation_ratios[f"{sparsity:g}"] = ours["validation_kl"] / min(
            medians[method, sparsity]["validation_kl"] for method in rivals
        )

    def mean_kl(method: str, split: str) -> float:
        return geometric_mean(medians[method, sparsity][f"{split}_kl"] for sparsity in SPARSITIES)

    to_long = mean_kl(OURS, "calibration") / mean_kl(LONG, "calibration")
    return {
        "holds": {
            "kl_ratio_at_most_1.02_everywhere": max(ratios.values()) <= 1.02,
            "no_worse_than_evolution_1500": to_long <= 1.0,
            "every_optimum_found": check["optima_found"] == check["targets"],
            "share_of_enumeration_at_most_0.1": check["share"] <= 0.1,
        },
        "kl_ratio_to_best_other": ratios,
        "best_other": best_others,
        "worst_kl_ratio": max(ratios.values()),
        "validation_kl_ratio_to_best_other": validation_ratios,
        "geomean_ratio_to_evolution_1500": to_long,
        "geomean_calibration_kl": {method: mean_kl(method, "calibration") for method in [*rivals, *NOT_RIVALS]},
        "geomean_validation_kl": {method: mean_kl(method, "validation") for method in [*rivals, *NOT_RIVALS]},
    }


def _medians(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a method and sparsity: medians over seeds. `kl`, `accuracy` and `agreement`, for the picture, are of
    validation."""
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["sparsity"]), []).append(row)
    medians = []
    for (method, sparsity), members in groups.items():
        values = {
            key: median(row[key] for row in members)
            for key in ("calibration_kl", "validation_kl", "validation_accuracy", "validation_agreement", "seconds")
        }
        medians.append(
            {
                "method": method,
                "sparsity": sparsity,
                **values,
                "kl": values["validation_kl"],
                "accuracy": values["validation_accuracy"],
                "agreement": values["validation_agreement"],
            }
        )
    return medians


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    typer.run(main)
