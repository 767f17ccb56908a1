"""A search says what to expect of unseen conversations, and predictors learn it from the searches that are stored."""

from dataclasses import replace
from pathlib import Path

import pytest

from lop.workflows.engines import EvaluatorRecipe
from lop.workflows.searching import record_result, search_model
from lop.workflows.training import cross_validated, searched_budgets
from mcts.result import SearchResult
from mcts.settings import SearchMethod, SearchSettings
from pruning.data.conversations import Conversation, calibration_id, load_conversations
from pruning.data.folds import NUM_FOLDS, fold_numbers
from pruning.planning.prices import ffn_parameters
from storage.contract import Repository
from values.kl_floor import log_kl
from values.typical_kl import TypicalKl, scored_alike
from values.unseen import UnseenPoint

SETTINGS = SearchSettings(sparsities=(0.3, 0.6), num_evaluations=12, num_levels=4)


def search(
    repository: Repository, conversations: list[Conversation], settings: SearchSettings = SETTINGS
) -> SearchResult:
    return search_model(repository, "tiny", conversations, settings, name="data.json", record=False)


@pytest.mark.parametrize("method", [SearchMethod.MCTS, SearchMethod.RANDOM])
def test_every_target_is_judged_on_folds_that_had_no_part_in_its_choice(
    repository: Repository, data: Path, method: SearchMethod
) -> None:
    conversations = load_conversations(data)
    result = search(repository, conversations, replace(SETTINGS, method=method))
    numbers = fold_numbers(conversations)
    assert numbers is not None
    for target in result.targets:
        found = target.cross_validation
        assert found is not None
        assert (found.kl, found.score) == (target.metrics.kl, target.metrics.score)
        assert [fold.num_answers for fold in found.folds] == [
            sum(len(c.turns) for c, n in zip(conversations, numbers, strict=True) if n == fold)
            for fold in range(NUM_FOLDS)
        ]
        assert all(fold.kl == 0.0 for fold in found.dense)
    assert SearchResult.from_dict(result.to_dict()).to_dict() == result.to_dict()


def test_run_again_it_measures_nothing_and_says_the_same(
    repository: Repository, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversations = load_conversations(data)
    first = search(repository, conversations)
    monkeypatch.setattr(EvaluatorRecipe, "__call__", lambda _self: pytest.fail("evaluated again"))
    assert search(repository, conversations) == first


def test_too_few_conversations_are_searched_without(repository: Repository, data: Path) -> None:
    result = search(repository, load_conversations(data, 7))
    assert [target.cross_validation for target in result.targets] == [None, None]
    assert "cross_validation" not in result.to_dict()["targets"][0]


def test_predictors_learn_from_all_samples_that_fit_a_searched_budget(repository: Repository, data: Path) -> None:
    conversations = load_conversations(data)
    few, more = replace(SETTINGS, num_evaluations=3), replace(SETTINGS, sparsities=(0.3,), num_evaluations=40)
    result = search(repository, conversations, few)
    record_result(repository, "tiny", conversations, few, result, name="data.json")
    budgets = searched_budgets(repository, "tiny", calibration_id(conversations))
    assert budgets == {target.budget for target in result.targets}
    assert searched_budgets(repository, "tiny", "another set") == set()
    better = search(repository, conversations, more)
    anatomy = repository.get_model("tiny").anatomy
    samples = repository.list_samples("tiny")
    found = cross_validated(anatomy, samples, budgets)
    assert found.keys() == budgets
    assert found[better.targets[0].budget].score == better.targets[0].metrics.score  # though no such search is stored
    assert found[better.targets[0].budget].score <= result.targets[0].metrics.score
    assert found[better.targets[0].budget] == better.targets[0].cross_validation


def test_a_budget_says_nothing_where_older_samples_fit_it(repository: Repository, data: Path) -> None:
    conversations = load_conversations(data)
    result = search(repository, conversations)
    anatomy = repository.get_model("tiny").anatomy
    small, large = sorted(target.budget for target in result.targets)
    samples = repository.list_samples("tiny")
    price = ffn_parameters(anatomy)
    older = [
        replace(s, metrics=replace(s.metrics, folds=None)) if small < price.cost(s.architecture) <= large else s
        for s in samples
    ]
    assert older != samples
    assert cross_validated(anatomy, older, (small, large)).keys() == {small}
    assert cross_validated(anatomy, [s for s in samples if s.architecture.items], (small, large)) == {}


def test_scores_of_both_kinds_are_not_mixed_in_a_training(repository: Repository, data: Path) -> None:
    """One sample from before root KL: KL is the score of all, and what is expected of unseen conversations follows."""
    conversations = load_conversations(data)
    result = search(repository, conversations)
    budgets = [target.budget for target in result.targets]
    anatomy = repository.get_model("tiny").anatomy
    samples = repository.list_samples("tiny")
    assert all(sample.metrics.score < sample.metrics.kl for sample in samples if sample.metrics.kl > 1e-6)
    old = replace(samples[-1], metrics=replace(samples[-1].metrics, folds=None))
    alike = scored_alike([*samples[:-1], old])
    assert all(sample.metrics.score == sample.metrics.kl for sample in alike)
    assert scored_alike(samples) == samples
    for found in cross_validated(anatomy, alike, budgets).values():
        assert found.score == found.kl
        point = UnseenPoint.of(found, TypicalKl.of([sample.metrics for sample in alike]))
        assert point.log_kl == log_kl(found.kl)
