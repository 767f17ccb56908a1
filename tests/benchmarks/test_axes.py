"""The benchmark of joint spaces: its programs, fairness, arithmetic, and that it goes on where it was killed."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from benchmarks import axes, axes_parts, axes_predictor, machine
from benchmarks.axes_milp import least_sum
from benchmarks.axes_models import Sizes
from benchmarks.axes_searches import EVOLUTION, FILLED, MILP, MILP_COMPLETE, SEARCH, AxisSearch, Found
from benchmarks.axes_summary import GAINS, RATIOS, summary_of
from benchmarks.axes_targets import LATENCIES, SPARSITIES, Kind, Target, TargetLimits
from pruning.anatomy.architecture import Architecture, Option
from pruning.planning.axis_spaces import SPACES_OF_UNITS, SpaceName, coarse_space, fine_space
from pruning.planning.limits import Limit, LimitKind, Limits
from pruning.planning.scope import Scope
from pruning.planning.space import Space
from pruning.planning.target import achieved_sparsity
from tests.benchmarks.made_up_axes import (
    Interrupted,
    MadeUpMetrics,
    MadeUpModel,
    MadeUpModels,
    anatomy,
    made_up_latency,
)

EVALUATIONS = 14
"""Too few to train on in the single spaces, enough in the joint one."""


def limits() -> TargetLimits:
    return TargetLimits(anatomy(), made_up_latency(Path(), Path()))


def test_the_integer_program_finds_what_enumeration_finds() -> None:
    """Under two limits, also where the best choice takes all that a limit leaves."""
    space = coarse_space(anatomy(), SpaceName.ATTENTION)
    rng = np.random.default_rng(3)
    choices = list(itertools.product(*(range(k) for k in space.counts)))
    for trial in range(12):
        costs = [tuple(np.sort(rng.integers(0, 9, k)) for k in space.counts) for _ in range(2)]
        loss = rng.random((space.num_decisions, int(space.counts.max())))
        loss[np.arange(len(loss)), np.array(space.top)] = 0.0  # costs are worth something, as in a scan
        most = [int(sum(0.4 * row[0] + 0.6 * row[-1] for row in rows)) for rows in costs]
        within = Limits(space, tuple(Limit(LimitKind.FLOPS, m, 0, rows) for m, rows in zip(most, costs, strict=True)))
        allowed = [c for c in choices if (within.slack(c) >= 0).all()]
        best = min(sum(loss[n, k] for n, k in enumerate(c)) for c in allowed)
        found = least_sum(within, loss)
        assert (within.slack(found) >= 0).all()
        assert sum(loss[n, k] for n, k in enumerate(found)) <= best + 1e-9, trial


def test_equal_evaluations_and_every_target_met(tmp_path: Path) -> None:
    """A search has its evaluations less a seventh of the scan; what a space cannot reach has no result."""
    targets = (*SPARSITIES, *LATENCIES)
    reached: dict[SpaceName, list[Target]] = {}
    for name in SPACES_OF_UNITS:
        model = MadeUpModel(tmp_path / name, {"calibration": MadeUpMetrics(0.0), "validation": MadeUpMetrics(0.1)})
        search = AxisSearch(model, name, limits(), evaluations=EVALUATIONS, seed=0)
        found = search.searched(targets)
        reached[name] = [of.target for of in found]
        share = search.scan_evaluations / 7
        for of in found:
            assert len(of.scored) <= search.own_evaluations
            assert of.evaluations == share + len(of.scored) <= EVALUATIONS
            axes_parts.check_met(of, limits())
        assert search.searched(targets) == found
        evolved = search.evolved(targets)
        assert all(of.evaluations == len(of.scored) <= EVALUATIONS for of in evolved)
        others = [*search.additive(targets, MILP), *search.additive(targets, MILP_COMPLETE)]
        for of in [*evolved, *others, *search.unsearched(targets)]:
            axes_parts.check_met(of, limits())
    assert [target.value for target in reached[SpaceName.ATTENTION]] == [0.15]  # a quarter of a layer
    assert reached[SpaceName.ALL] == [*SPARSITIES, LATENCIES[0]]  # layers of this machine wait more than they compute
    removed = achieved_sparsity(anatomy(), found[0].architecture)[Scope.DECODER]
    with pytest.raises(RuntimeError, match="does not meet"):
        axes_parts.check_met(Found(SEARCH, Target(Kind.SPARSITY, removed + 0.1), found[0].architecture, 1), limits())


def row(model: str, space: str, method: str, target: float, kl: float, kind: str = "sparsity") -> dict[str, Any]:
    return {
        "model": model,
        "space": space,
        "method": method,
        "kind": kind,
        "target": target,
        "validation_kl": kl,
        "searched": True,
        "evaluations": 80.0,
    }


def rows_of(model: str, factor: float) -> list[dict[str, Any]]:
    """Single spaces at two targets of which one reaches only the first; the joint one is `factor` as good."""
    return [
        row(model, "ffn", SEARCH, 0.3, 0.4),
        row(model, "ffn", SEARCH, 0.6, 4.0),
        row(model, "attention", SEARCH, 0.3, 0.2),
        row(model, "layers", SEARCH, 0.6, 5.0),
        row(model, "all", SEARCH, 0.3, 0.2 * factor),
        row(model, "all", SEARCH, 0.6, 4.0 * factor**3),
        row(model, "all", "milp", 0.3, 1e-3),  # below 45%: takes no part
        row(model, "all", "milp", 0.6, 4.0),
        row(model, "all", "milp-roots", 0.6, 2.0),
        row(model, "all", "milp-complete", 0.6, 1.5),
        row(model, "all", "milp-complete-roots", 0.6, 1.0),
        row(model, "all", "mcts-filled", 0.6, 4.0 * factor**3),
        row(model, "all", "lop", 0.6, 2.0 * factor**3),
        row(model, "all", "lop-policy", 0.6, 0.8 * factor**3),
        row(model, "all", "mcts-tree", 0.3, 0.1 * factor),
    ]


def test_the_summary_is_of_the_worse_model() -> None:
    rows = [*rows_of("one", 0.5), *rows_of("two", 0.8)]
    summary = summary_of(rows, {"scan_evaluations_32_layers": 151, "exceeded": 0, "gguf_joint_agreement": 0.98})
    one = summary["models"]["one"]
    assert one["joint_vs_best_single"] == pytest.approx(0.25)  # of .5 and .125
    assert one["joint_vs_best_single_worst"] == pytest.approx(0.5)
    assert one["best_single"] == {"sparsity 0.3": "attention", "sparsity 0.6": "ffn"}
    assert one["joint_vs_milp"] == pytest.approx(4.0 * 0.125 / 2.0)  # of the better one of the two
    assert one["by_target"]["joint_vs_milp"].keys() == {"sparsity 0.6"}
    assert summary["joint_vs_best_single"] == pytest.approx(0.8**2)
    assert summary["joint_vs_best_single_worst"] == pytest.approx(0.8)
    assert summary["joint_vs_milp_complete"] == pytest.approx(4.0 * 0.8**3)
    assert summary["lop_vs_search"] == pytest.approx(0.5)
    assert summary["policy_gain"] == pytest.approx(2.5)
    assert summary["tree_gain"] == pytest.approx(2.0)
    assert summary["untrained_policy_gain"] is None
    assert summary["holds"] == {
        "joint_vs_best_single_at_most_0.9": True,
        "joint_vs_best_single_worst_at_most_1": True,
        "joint_vs_milp_at_most_0.95": False,  # 4 times .8 cubed, over 2
        "lop_vs_search_at_most_1.05": True,
        "scan_evaluations_32_layers_at_most_150": False,
        "exceeded_at_most_0": True,
        "gguf_joint_agreement_at_least_0.99": False,
    }


def test_gains_are_of_the_model_that_gains_least_and_half_a_result_is_none() -> None:
    one, two = rows_of("one", 0.5), rows_of("two", 0.5)
    two[-1] = row("two", "all", "mcts-tree", 0.3, 0.4)
    assert summary_of([*one, *two], {})["tree_gain"] == pytest.approx(0.25)
    assert summary_of([*one, *two[:-1]], {})["tree_gain"] is None
    assert summary_of([*one, row("two", "ffn", SEARCH, 0.3, 1.0)], {})["joint_vs_best_single"] is None


def test_half_of_the_time_counts_as_half_of_the_decoder() -> None:
    rows = [
        row("one", "all", method, share, kl, "latency")
        for share in (0.65, 0.5)
        for method, kl in ((SEARCH, 1.0), (MILP, 4.0))
    ]
    assert summary_of(rows, {})["models"]["one"]["by_target"]["joint_vs_milp"] == {"latency 0.5": 0.25}


def test_an_additive_program_of_fewer_evaluations_is_not_one_of_as_many() -> None:
    """Models where both had fewer are left out; beside one that had as many, the other does not count."""
    one, two = rows_of("one", 0.5), rows_of("two", 0.8)
    for of in two:
        of["evaluations"] = 20.0 if of["method"].startswith("milp-complete") else 80.0
    summary = summary_of([*one, *two], {})
    assert summary["joint_vs_milp_complete"] == pytest.approx(4.0 * 0.5**3)
    assert summary["models"]["two"]["joint_vs_milp_complete"] is None
    assert summary["models"]["two"]["evaluations"]["all milp-complete"] == {"sparsity 0.6": 20.0}
    one = [{**of, "evaluations": 20.0} if of["method"] == "milp-complete-roots" else of for of in one]
    assert summary_of(one, {})["joint_vs_milp_complete"] == pytest.approx(4.0 * 0.5**3 / 1.5)


def test_a_plan_is_compared_with_what_the_search_found_filled_up() -> None:
    rows = [
        row("one", "all", "mcts", 0.3, 0.2),
        row("one", "all", "mcts-filled", 0.3, 0.1),
        row("one", "all", "lop", 0.3, 0.15),
    ]
    assert summary_of(rows, {})["lop_vs_search"] == pytest.approx(1.5)
    assert summary_of([rows[0], rows[2]], {})["lop_vs_search"] is None


def test_the_complete_scan_spends_what_searches_have_and_found_plans_are_filled_up(tmp_path: Path) -> None:
    model = MadeUpModel(tmp_path, {"calibration": MadeUpMetrics(0.0), "validation": MadeUpMetrics(0.1)})
    few = AxisSearch(model, SpaceName.ALL, limits(), evaluations=2, seed=0)
    assert few.complete_space is few.space  # its scan is too large already
    assert {of.evaluations for of in few.additive(SPARSITIES, MILP_COMPLETE)} == {2.0}
    search = AxisSearch(model, SpaceName.ALL, limits(), evaluations=EVALUATIONS, seed=0)
    assert int(search.complete_space.counts.max()) >= int(search.space.counts.max())
    fine = fine_space(anatomy(), SpaceName.ALL, round_to=8)
    found = search.searched(SPARSITIES)
    for before, after in zip(found, search.filled(found), strict=True):
        axes_parts.check_met(after, limits())
        assert (after.method, after.target, after.evaluations) == (FILLED, before.target, before.evaluations)
        kept, more = (fine.units_of(fine.at_most(units(of.architecture, fine))) for of in (before, after))
        assert all(a <= b for a, b in zip(kept, more, strict=True))
        within = limits().of(fine, before.target)
        assert within is not None
        choice = fine.choice_of(after.architecture)
        assert choice is not None
        for n, k in enumerate(choice):  # no step more fits
            if k + 1 < fine.counts[n]:
                assert within.slack((*choice[:n], k + 1, *choice[n + 1 :])).min() < 0


def units(architecture: Architecture, space: Space) -> list[int]:
    """What is kept of every decision."""
    sites = [decision.sites[0] for decision in space.decisions]
    return [
        architecture.options.get(site, Option(dense)).units
        for site, dense in zip(sites, space.dense_units.tolist(), strict=True)
    ]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MadeUpModels:
    """Two made-up models in the place of the real ones, and everything small."""
    made_up = MadeUpModels(("one", "two"))
    monkeypatch.setattr(axes_parts, "MODELS", made_up.makers)
    monkeypatch.setattr(axes_parts, "machine_latency", made_up_latency)
    small = {"policy_rounds": 1, "policy_steps_per_round": 4, "problems_per_round": 16, "batch_size": 8}
    training = replace(axes_predictor.TRAINING, **small, policy_width=8)  # type: ignore[arg-type]
    assert training.policy  # else rows of a policy would be of none
    monkeypatch.setattr(axes_predictor, "TRAINING", training)
    monkeypatch.setattr(axes, "SIZES", {name: Sizes(8, 8, EVALUATIONS) for name in made_up.makers})
    monkeypatch.setattr(axes, "WORK", tmp_path / "work")
    more = axes.OtherPart(lambda: {"http_p50_ms_joint_32_layers": 12.5, "rows": [{"a": 1}]})
    monkeypatch.setattr(axes, "OTHER_PARTS", {"more": more})
    for module in (axes, machine):
        monkeypatch.setattr(module, "RESULTS_DIR", tmp_path / "results")
    return made_up


def run(tmp_path: Path, name: str = "axes", **options: Any) -> dict[str, Any]:
    """What a run writes, without what differs from run to run."""
    given = {"part": None, "model": None, "conversations": None, "validation": None, "evaluations": None}
    axes.main(**{**given, "fresh": False, **options})
    document: dict[str, Any] = json.loads((tmp_path / "results" / f"{name}.json").read_text())
    for key in ("minutes", "minutes_by_part"):
        document["summary"].pop(key)
    return {key: document[key] for key in ("summary", "rows")}


def test_killed_anywhere_it_goes_on_and_says_the_same(
    tmp_path: Path, models: MadeUpModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most the evaluation that was running is done twice, and a few are checked at every start."""
    monkeypatch.setattr(axes, "SIZES", {"one": axes.SIZES["one"]})
    calibration, validation = (models.metrics["one"][split] for split in ("calibration", "validation"))
    for dies_at in (0, 11):
        calibration.dies_at = len(calibration.measured) + dies_at
        with pytest.raises(Interrupted):
            run(tmp_path)
    calibration.dies_at = None
    validation.dies_at = len(validation.measured) + 9
    with pytest.raises(Interrupted):
        run(tmp_path)
    validation.dies_at = None
    finished = run(tmp_path)
    different = set(models.measured)
    checks = 4 * 8 * 2  # starts, of each of two files
    assert len(models.measured) <= len(different) + checks
    before = len(models.measured)
    assert run(tmp_path) == finished
    assert len(models.measured) == before  # parts are read
    assert finished["summary"]["holds"]["http_p50_ms_joint_32_layers_at_most_40"]
    assert {"part": "more", "a": 1} in finished["rows"]
    methods = {(row["space"], row["method"]) for row in finished["rows"] if "part" not in row}
    assert {("all", "lop-untrained"), ("all", "mcts-tree"), ("layers", "shortgpt"), ("ffn", EVOLUTION)} <= methods
    summary = finished["summary"]
    # Widths of 64 channels end at eight levels: no scan of them takes as many evaluations as the search has.
    assert {name for name in (*RATIOS, *GAINS) if summary[name] is None} == {"joint_vs_milp_complete"}
    assert 0 < summary["scan_evaluations_32_layers"] <= 150
    assert (tmp_path / "results" / "axes.png").read_bytes().startswith(b"\x89PNG")


def test_part_of_it_is_written_elsewhere(tmp_path: Path, models: MadeUpModels) -> None:
    found = run(tmp_path, "axes-partial", part=["joint"], model=["two"], evaluations=10)
    assert {(row["model"], row["space"]) for row in found["rows"]} == {("two", "all")}
    assert found["summary"]["joint_vs_best_single"] is None
    assert not (tmp_path / "results" / "axes.json").exists()
    with pytest.raises(typer.BadParameter, match="one of one, two: three"):
        run(tmp_path, model=["three"])


def test_a_part_whose_code_has_changed_is_done_again_without_measuring(
    tmp_path: Path, models: MadeUpModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"part": ["joint"], "model": ["one"]}
    first = run(tmp_path, "axes-partial", **options)
    before = len(set(models.measured))
    monkeypatch.setattr("benchmarks.steps.changes_since", lambda _code: {"mcts/search.py": "has changed"})
    assert run(tmp_path, "axes-partial", **options) == first
    assert len(set(models.measured)) == before
