"""A whole search over a real database: stored, shared, killed and run again."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from engines.local import LocalEngine
from mcts.result import SearchResult
from mcts.settings import SearchSettings
from mcts.worker import run_search
from pruning.errors import InfeasibleTargetError, InputError, NotFoundError
from pruning.measuring.metrics import Metrics, Widths
from storage.sql_repository import SqlRepository
from tests.mcts.landscapes import EvaluateWidths, Landscape, make_anatomy, metrics_of
from tests.mcts.registered import CALIBRATION, MODEL, engine_of, open_registered

DENSE = [32, 32, 64, 32, 32]
PRICES = [3, 3, 3, 6, 3]
SETTINGS = SearchSettings(
    sparsities=(0.5, 0.7), num_evaluations=24, num_levels=8, round_to=4, parallel_leaves=3, seed=5, num_simulations=8
)
SCAN = 5 * 7 + 1
ANATOMY = make_anatomy(DENSE, PRICES)


class Killed(BaseException):
    """What a SIGKILL would be, if it could be caught."""


class MortalLandscape(Landscape):
    """Dies on the call after `lives` configurations were measured."""

    def __init__(self, lives: int) -> None:
        super().__init__(DENSE, seed=1)
        self._lives = lives

    def __call__(self, widths: Sequence[Widths], /) -> list[Metrics]:
        if len(self.calls) + len(widths) > self._lives:
            raise Killed
        return super().__call__(widths)


def engine(landscape: EvaluateWidths) -> LocalEngine:
    return engine_of(landscape, ANATOMY)


def registered(path: Path) -> SqlRepository:
    return open_registered(path, DENSE, PRICES)


def test_every_evaluation_is_stored_with_its_source(tmp_path: Path) -> None:
    repository, landscape = registered(tmp_path / "lop.db"), Landscape(DENSE, seed=1)
    steps: list[tuple[int, int, str, Metrics | None]] = []
    result = run_search(repository, MODEL, CALIBRATION, engine(landscape), SETTINGS, lambda *step: steps.append(step))
    samples = repository.list_samples(MODEL)
    assert [s.source for s in samples] == ["sensitivity"] * SCAN + ["mcts"] * (len(samples) - SCAN)
    assert [ANATOMY.ffn_widths(s.architecture) for s in samples] == landscape.calls
    assert result.evaluations == SCAN + 2 * 24
    assert [t.sparsity for t in result.targets] == [0.5, 0.7]
    stored = {ANATOMY.ffn_widths(s.architecture): s.metrics for s in samples}
    ffn_parameters = sum(w * p for w, p in zip(DENSE, PRICES, strict=True))
    for target in result.targets:
        kept = sum(w * p for w, p in zip(target.widths, PRICES, strict=True))
        assert kept <= target.budget <= (1 - (target.sparsity or 0)) * ffn_parameters
        assert stored[target.widths] == target.metrics
    done = [step[0] for step in steps]
    assert done == sorted(done)
    assert steps[0][1:] == (SCAN + 48, "sensitivity scan", None)
    assert steps[-1] == (SCAN + 48, SCAN + 48, "sparsity 0.7 (ffn)", result.targets[1].metrics)


@pytest.mark.parametrize("lives", [0, 7, SCAN, SCAN + 20, SCAN + 26])
def test_a_killed_search_run_again_ends_the_same(tmp_path: Path, lives: int) -> None:
    undisturbed = registered(tmp_path / "undisturbed.db")
    whole = Landscape(DENSE, seed=1)
    expected = run_search(undisturbed, MODEL, CALIBRATION, engine(whole), SETTINGS)

    killed, mortal = registered(tmp_path / "killed.db"), MortalLandscape(lives)
    with pytest.raises(Killed):
        run_search(killed, MODEL, CALIBRATION, engine(mortal), SETTINGS)
    assert killed.count_samples(MODEL) == len(mortal.calls)
    rest = Landscape(DENSE, seed=1)
    assert run_search(killed, MODEL, CALIBRATION, engine(rest), SETTINGS) == expected
    assert mortal.calls + rest.calls == whole.calls
    assert [s.architecture for s in killed.list_samples(MODEL)] == [
        s.architecture for s in undisturbed.list_samples(MODEL)
    ]


def test_a_finished_search_run_again_measures_nothing(tmp_path: Path) -> None:
    repository = registered(tmp_path / "lop.db")
    first = run_search(repository, MODEL, CALIBRATION, engine(Landscape(DENSE, seed=1)), SETTINGS)
    assert run_search(repository, MODEL, CALIBRATION, engine(MortalLandscape(0)), SETTINGS) == first


def test_samples_of_other_searches_change_nothing(tmp_path: Path) -> None:
    separate = registered(tmp_path / "alone.db")
    alone = run_search(separate, MODEL, CALIBRATION, engine(Landscape(DENSE, seed=1)), SETTINGS)
    shared = registered(tmp_path / "shared.db")
    other = SearchSettings(sparsities=(0.6, 0.5), num_evaluations=40, num_levels=8, round_to=4, seed=99)
    run_search(shared, MODEL, CALIBRATION, engine(Landscape(DENSE, seed=1)), other)
    landscape = Landscape(DENSE, seed=1)
    assert run_search(shared, MODEL, CALIBRATION, engine(landscape), SETTINGS) == alone
    assert len(landscape.calls) < alone.evaluations - SCAN


def test_infeasible_target_is_named_before_anything_is_evaluated(tmp_path: Path) -> None:
    settings = SearchSettings(sparsities=(0.5, 0.9), num_levels=4)
    with pytest.raises(InfeasibleTargetError, match=r"sparsity 0.9 \(ffn\)"):
        run_search(registered(tmp_path / "lop.db"), MODEL, CALIBRATION, engine(MortalLandscape(0)), settings)


def test_unknown_model_and_calibration(tmp_path: Path) -> None:
    repository = registered(tmp_path / "lop.db")
    with pytest.raises(NotFoundError):
        run_search(repository, "nobody", CALIBRATION, engine(MortalLandscape(0)), SETTINGS)
    with pytest.raises(NotFoundError):
        run_search(repository, MODEL, "d" * 64, engine(MortalLandscape(0)), SETTINGS)


def test_a_metric_that_is_not_a_number_stops_the_search(tmp_path: Path) -> None:
    def evaluate(widths: Sequence[Widths], /) -> list[Metrics]:
        return [metrics_of(float("nan") if min(w) < 8 else 0.1) for w in widths]

    with pytest.raises(InputError, match="finite kl"):
        run_search(registered(tmp_path / "lop.db"), MODEL, CALIBRATION, engine(evaluate), SETTINGS)


def test_result_as_json(tmp_path: Path) -> None:
    result = run_search(registered(tmp_path / "lop.db"), MODEL, CALIBRATION, engine(Landscape(DENSE, seed=1)), SETTINGS)
    assert SearchResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_results_without_agreement_are_what_they_always_were(tmp_path: Path) -> None:
    result = run_search(registered(tmp_path / "lop.db"), MODEL, CALIBRATION, engine(Landscape(DENSE, seed=1)), SETTINGS)
    document = result.to_dict()
    assert {tuple(target["metrics"]) for target in document["targets"]} == {
        ("kl", "nll", "accuracy", "num_tokens", "num_answers")
    }
    first = result.targets[0]
    agreeing = replace(first, metrics=replace(first.metrics, agreement=0.75))
    again = SearchResult.from_dict(json.loads(json.dumps(replace(result, targets=(agreeing,)).to_dict())))
    assert again.targets == (agreeing,)
