"""Rounds: samples where the predictor is unsure, a better predictor, and nothing near what is to be left alone."""

import dataclasses
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from engines.memo import Measured
from lop.cli import main
from lop.workflows.rounds import (
    SOURCE,
    RoundReport,
    RoundSettings,
    _measured_plans,
    train_in_rounds,
    uncertain_budgets,
)
from lop.workflows.searching import search_model
from lop.workflows.training import train_model, training_samples
from mcts.settings import SearchSettings
from policy_model.predictor import Predictor
from policy_model.training import TrainingSettings
from pruning.anatomy.architecture import Architecture, Sublayer
from pruning.data.conversations import calibration_id, load_conversations
from pruning.errors import InputError
from pruning.measuring.metrics import Metrics, Widths
from storage.contract import Repository
from storage.records import PredictorRecord
from storage.sql_repository import open_repository
from values.encoding import Encoding

SETTINGS = TrainingSettings(
    num_levels=6, policy_rounds=1, policy_steps_per_round=20, problems_per_round=16, policy_width=16, policy_blocks=1
)
CONVERSATIONS = 6


def widths_of(architecture: Architecture) -> Widths:
    return architecture.units(Sublayer.FFN, (48,) * 4)


def made_up(architectures: Sequence[Architecture], /) -> list[Measured]:
    """A landscape whose layers differ, and whose neighbours add to each other."""
    found = []
    for architecture in architectures:
        p = [1.0 - w / 48 for w in widths_of(architecture)]
        kl = sum((i + 1) * x * x for i, x in enumerate(p)) / 10 + 0.5 * p[0] * p[-1]
        metrics = Metrics(kl, 1.0 + kl, max(0.0, 1.0 - kl), 100, 50, agreement=1.0 / (1.0 + kl))
        found.append(Measured(metrics, 0.1))
    return found


@pytest.fixture(scope="module")
def searched_file(tmp_path_factory: pytest.TempPathFactory, registered: Path, data: Path) -> Path:
    """A database with a search of the tiny model at 30 and 60% on the first conversations. Read-only."""
    path = tmp_path_factory.mktemp("searched") / "lop.db"
    path.write_bytes(registered.read_bytes())
    repository = open_repository(f"sqlite:///{path}")
    settings = SearchSettings(sparsities=(0.3, 0.6), num_evaluations=40, num_levels=6)
    search_model(repository, "tiny", load_conversations(data)[:CONVERSATIONS], settings, name="data.json")
    repository.close()
    return path


@pytest.fixture
def database(tmp_path: Path, searched_file: Path) -> str:
    """The URL of a fresh copy of `searched_file`."""
    (tmp_path / "lop.db").write_bytes(searched_file.read_bytes())
    return f"sqlite:///{tmp_path / 'lop.db'}"


@pytest.fixture
def searched(repository: Repository, data: Path) -> tuple[Repository, str]:
    """The repository, and the id of the set that it was searched on."""
    return repository, calibration_id(load_conversations(data)[:CONVERSATIONS])


def test_a_round_adds_samples_where_it_said_and_reports_what_it_gained(searched: tuple[Repository, str]) -> None:
    repository, calibration = searched
    before = len(training_samples(repository, "tiny", calibration))
    reports: list[RoundReport] = []
    record, returned = train_in_rounds(
        repository,
        "tiny",
        calibration,
        made_up,
        SETTINGS,
        2,
        RoundSettings(num_targets=2, num_evaluations=6),
        on_round=reports.append,
    )
    assert reports == returned
    assert [r.number for r in reports] == [1, 2]
    after = training_samples(repository, "tiny", calibration)
    assert len(after) - before == sum(r.new_samples for r in reports) > 0
    assert before < record.config["info"]["num_samples"] <= len(after)
    assert repository.latest_predictor("tiny") == record
    assert {SOURCE, "mcts"} <= {sample.source for sample in after}
    assert {len(report.sparsities) for report in reports} == {2}


def test_what_a_report_says_was_measured(searched: tuple[Repository, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """KL of the plans of both predictors; in between, after the training, which learnt nothing there."""
    repository, calibration = searched
    first = Predictor.stored(repository, train_model(repository, "tiny", SETTINGS, calibration_id=calibration))
    events: list[str | int] = []

    def train_noted(*args: Any, **kwargs: Any) -> PredictorRecord:
        events.append("trained")
        return train_model(*args, **kwargs)

    def measured_noted(*args: Any) -> list[Metrics]:
        events.append(len(args[-1]))
        return _measured_plans(*args)

    monkeypatch.setattr("lop.workflows.rounds.train_model", train_noted)
    monkeypatch.setattr("lop.workflows.rounds._measured_plans", measured_noted)
    record, (report,) = train_in_rounds(
        repository, "tiny", calibration, made_up, SETTINGS, 1, RoundSettings(num_targets=3, num_evaluations=6)
    )
    assert events == ["trained", 3, "trained", 3, 2, 2]
    last = Predictor.stored(repository, record)
    encoding = first.encoding
    measured = {widths_of(s.architecture): s.metrics.kl for s in training_samples(repository, "tiny", calibration)}

    def plan_of(predictor: Predictor, sparsity: float) -> Widths:
        # Reports round sparsities to four digits: half of the last one more is the budget or a little over it.
        budget = int((1.00005 - sparsity) * encoding.most_parameters)
        return encoding.space.units_of(predictor.propose(budget - encoding.least_parameters))

    for sparsities, before, after in (
        (report.sparsities, report.plan_kl_before, report.plan_kl_after),
        (report.between, report.between_kl_before, report.between_kl_after),
    ):
        assert list(before) == [measured[plan_of(first, s)] for s in sparsities]
        assert list(after) == [measured[plan_of(last, s)] for s in sparsities]
    shares = {widths_of(s.architecture): s.metrics.agreement for s in training_samples(repository, "tiny", calibration)}
    assert report.plan_agreement_before == tuple(shares[plan_of(first, s)] for s in report.sparsities)
    assert report.plan_agreement_after == tuple(shares[plan_of(last, s)] for s in report.sparsities)
    assert report.agreement_after == pytest.approx(sum(x or 0.0 for x in report.plan_agreement_after) / 3)
    unmeasured = dataclasses.replace(report, plan_agreement_before=(0.5, None, 0.5))
    assert unmeasured.agreement_before is None
    assert len(report.sparsities) == 3
    assert len(report.between) == 2


class StubPredictor:
    """Proposes what may be spent itself, and is unsure of one budget."""

    def __init__(self, encoding: Encoding, unsure_of: float) -> None:
        self.encoding, self._unsure_of = encoding, unsure_of

    def propose(self, spare: int) -> int:
        return spare

    def uncertainty(self, spare: int) -> float:
        budget = spare + self.encoding.least_parameters
        return -abs(budget / self.encoding.most_parameters - self._unsure_of)


def test_budgets_are_those_of_the_largest_error_to_expect(searched: tuple[Repository, str]) -> None:
    repository, calibration = searched
    encoding = Predictor.stored(
        repository, train_model(repository, "tiny", SETTINGS, calibration_id=calibration)
    ).encoding
    samples, total = training_samples(repository, "tiny", calibration), encoding.most_parameters

    def chosen(unsure_of: float, seed: int) -> float:
        predictor = cast("Predictor", StubPredictor(encoding, unsure_of))
        (budget,) = uncertain_budgets(predictor, samples, RoundSettings(num_targets=1), seed=[seed])
        return budget / total

    # Of six budgets between 0.4 and 0.7 kept, the nearest.
    low, high = ([chosen(unsure_of, seed) for seed in range(20)] for unsure_of in (0.4, 0.7))
    assert all(a < b for a, b in zip(low, high, strict=True))
    assert sum(high) - sum(low) > 20 * 0.1


def test_budgets_that_are_one_level_apart_are_one(searched: tuple[Repository, str]) -> None:
    """Of a search of a single target; and where nearly nothing was removed."""
    repository, calibration = searched
    encoding = Predictor.stored(
        repository, train_model(repository, "tiny", SETTINGS, calibration_id=calibration)
    ).encoding
    predictor = cast("Predictor", StubPredictor(encoding, 0.5))
    step = np.diff(encoding.parameters, axis=1).min()
    samples = training_samples(repository, "tiny", calibration)

    deep = [s for s in samples if sum(w < 48 for w in widths_of(s.architecture)) > 1]
    one_target = deep[:1] * 3
    budgets = uncertain_budgets(predictor, one_target, RoundSettings(num_targets=8), seed=[0])
    assert len(budgets) == 1
    few = uncertain_budgets(predictor, deep, RoundSettings(num_targets=500), seed=[0])
    assert 3 < len(few) < 500
    assert all(b - a >= step for a, b in itertools.pairwise(few))
    cut = repository.get_model("tiny").anatomy.architecture((47, 47, *encoding.dense_units[2:].tolist()))
    dense = dataclasses.replace(deep[0], architecture=cut)
    assert len(uncertain_budgets(predictor, [dense], RoundSettings(num_targets=8), seed=[0])) == 1


def test_targets_are_spread_and_keep_away_from_what_is_to_be_avoided(searched: tuple[Repository, str]) -> None:
    repository, calibration = searched
    record = train_model(repository, "tiny", SETTINGS, calibration_id=calibration)
    predictor = Predictor.stored(repository, record)
    samples = training_samples(repository, "tiny", calibration)
    total = predictor.encoding.most_parameters
    budgets = uncertain_budgets(predictor, samples, RoundSettings(num_targets=4, num_evaluations=2), seed=[0, 1])
    assert len(budgets) == 4
    assert list(budgets) == sorted(budgets)
    again = uncertain_budgets(predictor, samples, RoundSettings(num_targets=4, num_evaluations=2), seed=[0, 1])
    assert again == budgets
    avoid = tuple(1.0 - budget / total for budget in budgets)
    others = uncertain_budgets(
        predictor, samples, RoundSettings(num_targets=4, num_evaluations=2, avoid=avoid), seed=[0, 1]
    )
    assert all(abs(1.0 - budget / total - s) > 0.02 for budget in others for s in avoid)
    with pytest.raises(InputError, match="a budget that is not to be avoided"):
        uncertain_budgets(predictor, samples, RoundSettings(1, 2, avoid=(0.5,), margin=1.0), seed=[0, 1])


@pytest.fixture
def trains_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """`lop train` with the steps of SETTINGS, whatever it was asked for."""

    def train_briefly(repository: Repository, model_id: str, _: TrainingSettings, **options: Any) -> PredictorRecord:
        return train_model(repository, model_id, SETTINGS, **options)

    monkeypatch.setattr("lop.workflows.rounds.train_model", train_briefly)


@pytest.mark.usefixtures("trains_briefly")
def test_the_command_reports_its_rounds(
    searched: tuple[Repository, str],
    database: str,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    repository, calibration = searched
    before = len(training_samples(repository, "tiny", calibration))
    command = ["lop", "train", "-m", "tiny", "--data", str(data), "--conversations", str(CONVERSATIONS)]
    command += ["--rounds", "1", "--round-targets", "1", "--round-evaluations", "3", "--num-levels", "6"]
    monkeypatch.setattr(sys, "argv", [*command, "--database", database, "--json"])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert ended.value.code in (0, None), err
    (report,) = json.loads(out)["rounds"]
    assert report["new_samples"] == len(training_samples(repository, "tiny", calibration)) - before
    assert "round 1:" in err


@pytest.mark.usefixtures("trains_briefly")
def test_progress_is_shown_of_every_training_and_search_and_metrics_in_the_end(
    searched: tuple[Repository, str],
    database: str,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["lop", "train", "-m", "tiny", "--data", str(data), "--conversations", str(CONVERSATIONS)]
    command += ["--rounds", "2", "--round-targets", "1", "--round-evaluations", "3", "--num-levels", "6"]
    monkeypatch.setattr(sys, "argv", [*command, "--database", database])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert ended.value.code in (0, None), err
    assert err.count("training the policy") == 3
    assert err.replace("\n", " ").count("they agreed with the dense model on") == 2
    first, second = err.index("round 1:"), err.index("round 2:")
    for part in (err[:first], err[first:second]):
        assert "evaluations, best KL" in part
        assert part.rindex("training the policy") > part.index("evaluations, best KL")
    for words in (
        "rounds: KL of the predictor",
        "mean error of log KL on samples that were left out: ",
        "mean error of the agreement with the dense model, likewise: ",
        "agreement",
        "problems that were held out, in nats a decision: ",
    ):
        assert words in out


def test_rounds_go_on_with_the_one_that_was_not_finished(searched: tuple[Repository, str]) -> None:
    repository, calibration = searched
    sizes = RoundSettings(num_targets=1, num_evaluations=4)
    _, reports = train_in_rounds(repository, "tiny", calibration, made_up, SETTINGS, 2, sizes, first_round=2)
    assert [report.number for report in reports] == [2]
    record, none_left = train_in_rounds(repository, "tiny", calibration, made_up, SETTINGS, 2, sizes, first_round=3)
    assert none_left == []
    assert repository.latest_predictor("tiny") == record


def test_rounds_without_data_are_refused(
    database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lop", "train", "-m", "tiny", "--rounds", "2", "--database", database])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "--rounds 2 without --data" in capsys.readouterr().err
