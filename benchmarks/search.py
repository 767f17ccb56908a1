"""The tree search against every other allocator on two models: equal achieved parameters, equal scored tokens.

A target may have as many answer tokens scored as EVALUATIONS configurations on the first FEW calibration conversations
have. What begins with the one-layer scan pays for its share of it. Spent on all 128 calibration conversations, that is
fewer configurations, better judged; rows named `-few` spend it on the first FEW. What searches from equal retention
without a scan is run both ways, with one seed: it is far behind either way.

    additive-dp     the additive program on the scan: fewer tokens than it may have, since it has no use for more
    local-swaps     steepest descent by swap moves from there
    evolution       from equal retention, as published; evolution-dp: from the additive program's choice. With tens of
                    evaluations, one offspring a generation (better than eight by 2% on the tests' landscapes)
    mcts            the search as it is by default: its proposals are swap moves and mutations
    mcts-tree       ablation: the tree's simulations propose, too
    mcts-tree-alone ablation: nothing but the tree's simulations proposes
    mcts-kl         ablation: minimises mean KL, as all rivals do, instead of the squared mean root KL
    -roots          rivals that are given the search's objective

A search without its surrogate would be evolution-dp-roots or local-swaps-roots: what they lack is what judges
proposals.

Judged by the geometric mean of validation KL over targets and seeds; of two models, the worse one counts. The recipe
and its constants were chosen on newly made conversations of the same world with other seeds (docs/search.md), on the
first model; the validation conversations are for reporting. Every configuration that was measured is kept in
benchmarks/.work: a run that was killed goes on (`--fresh` forgets).
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import geometric_mean, median
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.enumeration import check_against_enumeration
from benchmarks.local_swaps import improve_by_swaps
from benchmarks.machine import RESULTS_DIR, write_results
from benchmarks.subject import REFERENCE, SECOND, Subject
from lop.console.pictures import draw_comparison, draw_search
from lop.workflows.measuring import OF_METHODS
from mcts.result import SearchResult, TargetResult
from mcts.sensitivity import scan_choices
from mcts.settings import SearchMethod, SearchSettings
from mcts.targets import SearchTarget
from pruning.allocators.additive_dp import cost_to_go
from pruning.allocators.allocation import Allocation
from pruning.allocators.evolution import evolve
from pruning.allocators.registry import STATISTICAL_ALLOCATORS
from pruning.allocators.uniform import uniform_choice
from pruning.arrays import FloatArray
from pruning.measuring.metrics import Widths
from pruning.planning.ffn_spaces import ffn_levels, ffn_widths
from pruning.planning.limits import Limits
from pruning.planning.prices import ffn_parameters
from pruning.planning.ranking import Ranking
from pruning.planning.space import Choice, Space
from pruning.planning.target import ffn_parameter_limits

SPARSITIES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
SEEDS = (0, 1, 2)
EVALUATIONS = 300
OURS, SWAPS = "mcts", "local-swaps"
TREE, TREE_ALONE, OURS_FEW = "mcts-tree", "mcts-tree-alone", "mcts-few"
BY_KL = "mcts-kl"
ROOTS = "-roots"
ABLATIONS = (TREE, TREE_ALONE, OURS_FEW, BY_KL)
NOT_RIVALS = (OURS, *ABLATIONS)
MODELS = {"reference": REFERENCE, "second": SECOND}
TREE_SETTINGS = {"num_simulations": 8}
TREE_ALONE_SETTINGS = {"num_simulations": 64, "num_parents": 0, "num_mutations": 0, "max_moves": 1}
"""More simulations: eight would be all proposals there are."""

NUM_LEVELS = 8
ROUND_TO = 8


@dataclass(frozen=True)
class Found:
    """One row before it is validated: what `method` allocates at `sparsity`, and what that took."""

    method: str
    sparsity: float
    seed: int | None
    widths: Widths
    seconds: float
    evaluations: float = 0
    scored_tokens: float = 0
    ranking: Ranking | None = None


@dataclass(frozen=True)
class Run:
    """One search of all targets on the conversations of `subject`.

    Attributes:
        name: of its rows.
        evaluations: a target's own; `scan` more are shared by all targets.
        method: by the product's search; None for what is only a rival.
        settings: other than the defaults.
        by_kl: mean KL is minimised.
    """

    name: str
    subject: Subject
    evaluations: int
    scan: int
    seed: int
    method: SearchMethod | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    by_kl: bool = False


def main(
    few: Annotated[int, typer.Option(min=1, help="Conversations of the rows named so; they set the tokens.")] = 14,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an interrupted run left.")] = False,
) -> None:
    """Write results/search.json, and of each model search*.png (quality against sparsity) and search_progress*.png."""
    started = time.perf_counter()
    rows: list[dict[str, Any]] = []
    summaries: dict[str, dict[str, Any]] = {}
    check: dict[str, Any] = {}
    RESULTS_DIR.mkdir(exist_ok=True)
    for model, folder in MODELS.items():
        subject = Subject(folder, None, fresh=fresh and not rows)
        of_model = _rows_of_model(model, subject, Subject(folder, few, fresh=False))
        draw_comparison(_medians(of_model), RESULTS_DIR / f"search{_suffix(model)}.png")
        summaries[model] = _summary(of_model)
        rows += [{"model": model, **row} for row in of_model]
        if not check:  # a small instance says as much on one model
            check = check_against_enumeration(subject)
            _say(f"enumeration: {check['optima_found']} of {check['targets']} optima found")
    minutes = (time.perf_counter() - started) / 60
    summary = {**_worse(summaries, check), "models": summaries, "exact_check": check, "minutes": minutes}
    path = write_results("search", summary, rows)
    print(json.dumps({**summary, "results": str(path)}))  # noqa: T201


def _rows_of_model(model: str, subject: Subject, few: Subject) -> list[dict[str, Any]]:
    """Everything that is run on one model, judged; draws how its searches went on."""
    budgets = {s: _level_budget(subject_space(subject), subject, s) for s in SPARSITIES}
    found = _without_search(subject, budgets)
    _say(f"{model}: methods without a search are done")
    curves: dict[str, dict[str, Sequence[float]]] = {}
    first: dict[str, int] = {}
    for run in _runs(subject, few):
        result, seconds = _search(run, list(budgets.values()))
        found += _rows_of(run, result, seconds)
        if run.seed == SEEDS[0] and run.subject is subject and not run.by_kl:
            first[run.name] = math.ceil(run.scan / len(SPARSITIES))
            for sparsity, target in zip(SPARSITIES, result.targets, strict=True):
                curves.setdefault(f"{sparsity:.0%} of FFN channels removed", {})[run.name] = target.curve
        _say(f"{model}: {run.name} seed {run.seed}: {[round(t.metrics.kl, 5) for t in result.targets]}")
    draw_search(curves, RESULTS_DIR / f"search_progress{_suffix(model)}.png", first=first)
    return [_measured(subject, row) for row in found]


def _suffix(model: str) -> str:
    """Of pictures: the first model's have none."""
    return "" if model == next(iter(MODELS)) else f"_{model}"


def _runs(subject: Subject, few: Subject) -> list[Run]:
    """The searches, all of which score at most as many tokens a target: those first that say most."""
    scan = len(scan_choices(subject_space(subject)))
    tokens = EVALUATIONS * few.answer_tokens
    alone = max(1, tokens // subject.answer_tokens)
    own = max(1, (len(SPARSITIES) * tokens // subject.answer_tokens - scan) // len(SPARSITIES))
    own_few = EVALUATIONS - math.ceil(scan / len(SPARSITIES))
    runs = []
    for seed in SEEDS:
        runs += [
            Run(OURS, subject, own, scan, seed, SearchMethod.MCTS),
            Run("evolution-dp", subject, own, scan, seed, by_kl=True),
            Run(TREE, subject, own, scan, seed, SearchMethod.MCTS, TREE_SETTINGS),
        ]
    first = SEEDS[0]
    return [
        *runs,
        Run(SWAPS, subject, own, scan, first, by_kl=True),
        Run(BY_KL, subject, own, scan, first, SearchMethod.MCTS, by_kl=True),
        Run(SWAPS + ROOTS, subject, own, scan, first),
        Run("evolution-dp" + ROOTS, subject, own, scan, first),
        Run(TREE_ALONE, subject, own, scan, first, SearchMethod.MCTS, TREE_ALONE_SETTINGS),
        Run(OURS_FEW, few, own_few, scan, first, SearchMethod.MCTS),
        Run("evolution-few", few, EVALUATIONS, 0, first, SearchMethod.EVOLUTION, by_kl=True),
        Run("random-few", few, EVALUATIONS, 0, first, SearchMethod.RANDOM, by_kl=True),
        Run("evolution", subject, alone, 0, first, by_kl=True),
        Run("random", subject, alone, 0, first, SearchMethod.RANDOM, by_kl=True),
    ]


def _search(run: Run, budgets: Sequence[int]) -> tuple[SearchResult, list[float]]:
    """The result and each target's seconds, those of the scan divided among the targets that share it."""
    if run.method is None:
        return _search_in_steps(run, budgets)
    settings = SearchSettings(
        budgets=tuple(budgets),
        method=run.method,
        num_evaluations=run.evaluations,
        seed=run.seed,
        num_levels=NUM_LEVELS,
        round_to=ROUND_TO,
        parallel_leaves=1,
        **run.settings,
    )
    return run.subject.search(settings, by_kl=run.by_kl)


def _search_in_steps(run: Run, budgets: Sequence[int]) -> tuple[SearchResult, list[float]]:
    """Evolution, or local swaps, step by step; from the optimum of the additive program if the run has a scan."""
    space = subject_space(run.subject)
    score = run.subject.score(space, by_kl=run.by_kl)
    sensitivity, scan_seconds = run.subject.scan(space, by_kl=run.by_kl)
    targets, seconds = [], []
    for index, budget in enumerate(budgets):
        started = run.subject.seconds
        limits = ffn_parameter_limits(run.subject.anatomy, space, budget)
        start = _additive_optimum(limits, sensitivity) if run.scan else None
        if run.name.startswith(SWAPS):
            assert start is not None
            scored = improve_by_swaps(limits, score, run.evaluations, sensitivity, start)
        else:
            rng = np.random.default_rng([run.seed, index])
            scored = evolve(limits, score, run.evaluations, rng, start=start, num_offspring=1)
        targets.append(TargetResult.of(SearchTarget(f"budget {budget}", budget, None), space, scored))
        seconds.append(run.subject.seconds - started + (scan_seconds / len(budgets) if run.scan else 0.0))
    return SearchResult(tuple(targets), run.scan), seconds


def subject_space(subject: Subject) -> Space:
    """What is searched."""
    return ffn_levels(subject.anatomy, num_levels=NUM_LEVELS, round_to=ROUND_TO)


def _additive_optimum(limits: Limits, loss: FloatArray) -> Choice:
    """[N] the choice of least summed `loss` [N, K], filled up."""
    spare = int(limits.spare[0])
    best = limits.fit(cost_to_go(limits.table, loss, spare).best_choice(spare), -loss)
    return tuple(best.tolist())


def _level_budget(space: Space, subject: Subject, sparsity: float) -> int:
    """The most that choices of the space can keep: with it, every method keeps the same number of parameters."""
    unit = max(int(np.diff(row).max()) for row in space.tables(ffn_parameters(subject.anatomy).of))
    return subject.budget(sparsity, ROUND_TO) // unit * unit


def _without_search(subject: Subject, budgets: Mapping[float, int]) -> list[Found]:
    """The methods that allocate from statistics or a scan. Measuring those once is part of every target's seconds."""
    found: list[Found] = []
    space = subject_space(subject)
    scan = len(scan_choices(space))
    statistics = {kind: subject.statistics(kind) for kind in OF_METHODS}
    scans = {"additive-dp": subject.scan(space, by_kl=True), "additive-dp" + ROOTS: subject.scan(space)}
    fine = ffn_widths(subject.anatomy, round_to=ROUND_TO)
    for sparsity, budget in budgets.items():
        uniform = uniform_choice(ffn_parameter_limits(subject.anatomy, fine, budget))
        found.append(Found("uniform", sparsity, None, fine.units_of(uniform), 0.0))
        for name, (sensitivity, scan_seconds) in scans.items():
            before = time.perf_counter()
            levels = _additive_optimum(ffn_parameter_limits(subject.anatomy, space, budget), sensitivity)
            seconds = scan_seconds + time.perf_counter() - before
            evaluations = scan / len(budgets)
            tokens = evaluations * subject.answer_tokens
            found.append(Found(name, sparsity, None, space.units_of(levels), seconds, evaluations, tokens))
        for name, allocator in STATISTICAL_ALLOCATORS.items():
            measured, measuring_seconds = statistics[allocator.kind]
            before = time.perf_counter()
            price = ffn_parameters(subject.anatomy, compensates=allocator.compensates)
            limits = Limits(fine, (price.limit(fine, budget),))
            allocation: Allocation = allocator.allocate(subject.anatomy, measured, limits)
            seconds = measuring_seconds + time.perf_counter() - before
            widths = subject.anatomy.ffn_widths(allocation.architecture)
            found.append(Found(name, sparsity, None, widths, seconds, ranking=allocation.ranking))
    return found


def _rows_of(run: Run, result: SearchResult, seconds: Sequence[float]) -> list[Found]:
    """One row a target; the scan's evaluations are divided among them."""
    found = []
    for sparsity, target, spent in zip(SPARSITIES, result.targets, seconds, strict=True):
        evaluations = target.evaluations + result.scan_evaluations / len(result.targets)
        tokens = evaluations * run.subject.answer_tokens
        found.append(Found(run.name, sparsity, run.seed, target.widths, spent, evaluations, tokens))
    return found


def _measured(subject: Subject, row: Found) -> dict[str, Any]:
    calibration = subject.evaluate("calibration", row.widths, row.ranking)
    validation = subject.evaluate("validation", row.widths, row.ranking)
    return {
        "method": row.method,
        "sparsity": row.sparsity,
        "seed": row.seed,
        "evaluations": row.evaluations,
        "scored_tokens": row.scored_tokens,
        "calibration_kl": calibration.kl,
        "validation_kl": validation.kl,
        "validation_accuracy": validation.accuracy,
        "validation_agreement": validation.agreement,
        "seconds": row.seconds,
        "parameters": subject.kept_parameters(row.widths, row.ranking),
        "achieved_sparsity": 1 - subject.kept_parameters(row.widths, row.ranking) / subject.anatomy.ffn_parameters,
        "widths": list(row.widths),
    }


def _worse(summaries: Mapping[str, Mapping[str, Any]], check: Mapping[str, Any]) -> dict[str, Any]:
    """What has to hold, of the worse model each."""
    ratios = [
        f"validation_{of}_vs_best_{rivals}" for rivals in ("other", "with_objective") for of in ("geomean", "worst")
    ]
    worse = {name: max(summary[name] for summary in summaries.values()) for name in ratios}
    worse |= {name: min(summary[name] for summary in summaries.values()) for name in ("tree_gain", "objective_gain")}
    return worse | {
        "holds": {
            "validation_geomean_vs_best_other_at_most_0.97": worse["validation_geomean_vs_best_other"] <= 0.97,
            "validation_worst_vs_best_other_at_most_1.05": worse["validation_worst_vs_best_other"] <= 1.05,
            "no_worse_than_rivals_with_the_objective": worse["validation_geomean_vs_best_with_objective"] <= 1.0,
            "every_optimum_found": check["optima_found"] == check["targets"],
            "share_of_enumeration_at_most_0.1": check["share"] <= 0.1,
        }
    }


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of one model, of validation KL: geometric means over seeds, and over targets where it says so."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    of_seeds = {
        (method, sparsity, split): geometric_mean(
            row[f"{split}_kl"] for row in rows if (row["method"], row["sparsity"]) == (method, sparsity)
        )
        for method in methods
        for sparsity in SPARSITIES
        for split in ("calibration", "validation")
    }

    def mean_kl(method: str, split: str = "validation") -> float:
        return geometric_mean(of_seeds[method, sparsity, split] for sparsity in SPARSITIES)

    def first_seed(method: str) -> float:
        own = [row for row in rows if row["method"] == method and row["seed"] == SEEDS[0]]
        return geometric_mean(row["validation_kl"] for row in own)

    def ratios(over: Callable[[float], str]) -> dict[str, float]:
        """Ours over the method `over(sparsity)`, target by target."""
        return {f"{s:g}": of_seeds[OURS, s, "validation"] / of_seeds[over(s), s, "validation"] for s in SPARSITIES}

    with_objective = [method for method in methods if method.endswith(ROOTS)]
    rivals = [method for method in methods if method not in (*NOT_RIVALS, *with_objective)]
    best, best_with = min(rivals, key=mean_kl), min(with_objective, key=mean_kl)
    best_at = {s: min(rivals, key=lambda method: of_seeds[method, s, "validation"]) for s in SPARSITIES}
    to_best, to_best_with = ratios(lambda _: best), ratios(lambda _: best_with)
    return {
        "validation_geomean_vs_best_other": mean_kl(OURS) / mean_kl(best),
        "validation_worst_vs_best_other": max(to_best.values()),
        "validation_geomean_vs_best_with_objective": mean_kl(OURS) / mean_kl(best_with),
        "validation_worst_vs_best_with_objective": max(to_best_with.values()),
        "objective_gain": first_seed(BY_KL) / first_seed(OURS),
        "tree_gain": mean_kl(OURS) / mean_kl(TREE),
        "best_other": best,
        "best_with_objective": best_with,
        "validation_vs_best_other": to_best,
        "validation_vs_best_with_objective": to_best_with,
        "best_other_at": {f"{s:g}": method for s, method in best_at.items()},
        "validation_vs_best_other_at": ratios(best_at.__getitem__),
        "tree_gain_calibration": mean_kl(OURS, "calibration") / mean_kl(TREE, "calibration"),
        "geomean_validation_kl": {method: mean_kl(method) for method in sorted(methods, key=mean_kl)},
        "geomean_calibration_kl": {method: mean_kl(method, "calibration") for method in sorted(methods, key=mean_kl)},
    }


def _medians(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the picture shows: of rivals and ours, medians over seeds of the validation figures."""
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["method"] not in ABLATIONS and not row["method"].endswith(ROOTS):
            groups.setdefault((row["method"], row["sparsity"]), []).append(row)
    return [
        {"method": method, "sparsity": sparsity}
        | {key: median(row[f"validation_{key}"] for row in members) for key in ("kl", "accuracy", "agreement")}
        for (method, sparsity), members in groups.items()
    ]


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    typer.run(main)
