"""A search says what to expect of unseen conversations, and predictors learn it from the searches that are stored."""

from dataclasses import replace
from pathlib import Path

import pytest

from lop.workflows.engines import EvaluatorRecipe
from lop.workflows.searching import record_result, search_model
from lop.workflows.training import cross_validated_targets
from mcts.result import SearchResult
from mcts.settings import SearchMethod, SearchSettings
from pruning.data.conversations import Conversation, calibration_id, load_conversations
from pruning.data.folds import NUM_FOLDS, fold_numbers
from storage.contract import Repository

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
        assert found.kl == target.metrics.kl
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


def test_the_largest_search_of_a_target_is_what_predictors_learn(repository: Repository, data: Path) -> None:
    conversations = load_conversations(data)
    result = search(repository, conversations)
    record_result(repository, "tiny", conversations, SETTINGS, result, name="data.json")
    found = cross_validated_targets(repository, "tiny", calibration_id(conversations))
    assert found == {target.budget: target.cross_validation for target in result.targets}
    first = result.targets[0].cross_validation
    assert first is not None
    other = replace(result, targets=(replace(result.targets[0], cross_validation=replace(first, kl=0.5)),))
    record_result(repository, "tiny", conversations, replace(SETTINGS, sparsities=(0.3,)), other, name="data.json")
    found = cross_validated_targets(repository, "tiny", calibration_id(conversations))
    assert found[result.targets[0].budget].kl == 0.5  # as many evaluations, later
    assert len(found) == 2
    smaller = replace(other.targets[0], evaluations=3, cross_validation=first)
    few = replace(SETTINGS, sparsities=(0.3,), num_evaluations=3)
    record_result(repository, "tiny", conversations, few, replace(result, targets=(smaller,)), name="data.json")
    assert cross_validated_targets(repository, "tiny", calibration_id(conversations)) == found
    assert cross_validated_targets(repository, "tiny", "another set") == {}
