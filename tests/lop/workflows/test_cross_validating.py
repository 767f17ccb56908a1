"""A search says what to expect of unseen conversations: measured on folds that its choices and rankings did not see."""

from dataclasses import replace
from pathlib import Path

import pytest

from lop.workflows.cross_validating import SOURCE
from lop.workflows.engines import EvaluatorRecipe
from lop.workflows.registration import register_by_weights
from lop.workflows.searching import record_result, search_model
from lop.workflows.training import cross_validated_targets
from mcts.result import SearchResult
from mcts.settings import SearchSettings
from pruning.checkpoints.loading import load_model, load_processor
from pruning.data.batches import make_batches
from pruning.data.conversations import Conversation, calibration_id, load_conversations
from pruning.data.folds import fold_numbers
from pruning.measuring.importance import ranking_of
from pruning.measuring.statistics import StatisticsKind, measure_statistics
from storage.contract import Repository

SETTINGS = SearchSettings(sparsities=(0.3, 0.6), num_evaluations=6, num_levels=4)


def search(repository: Repository, conversations: list[Conversation], model_id: str = "tiny") -> SearchResult:
    return search_model(repository, model_id, conversations, SETTINGS, name="data.json", record=False)


def test_each_fold_is_judged_without_having_been_seen(repository: Repository, data: Path, checkpoint: Path) -> None:
    conversations = load_conversations(data)
    result = search(repository, conversations)
    numbers = fold_numbers(conversations)
    assert numbers is not None
    fold = 3
    rest = [c for c, number in zip(conversations, numbers, strict=True) if number != fold]
    held_out = [c for c, number in zip(conversations, numbers, strict=True) if number == fold]
    model = repository.get_model("tiny")
    batches = make_batches(rest, load_processor(checkpoint))
    statistics = measure_statistics(StatisticsKind.ACTIVATIONS, load_model(checkpoint), batches)
    ranking = ranking_of(statistics, model.anatomy).to_bytes()
    space = SETTINGS.space(model.anatomy)
    for target in result.targets:
        assert target.cross_validation is not None
        assert target.cross_validation.kl == target.metrics.kl
        assert len(target.cross_validation.folds) == max(numbers) + 1
        found = [space.architecture(choice) for choice in target.without_fold[fold]]
        measured = EvaluatorRecipe.of(model, ranking, held_out)()(found)
        score = target.cross_validation.folds[fold]
        assert score.kl == pytest.approx(sum(m.kl for m in measured) / len(measured), rel=1e-3)
        own = repository.get_artifact(model.ranking_sha256).content
        seen = EvaluatorRecipe.of(model, own, held_out)()(found)
        assert score.kl_ranked == pytest.approx(sum(m.kl for m in seen) / len(seen), rel=1e-3)
        assert score.num_tokens == measured[0].num_tokens


def test_run_again_it_measures_nothing_and_says_the_same(
    repository: Repository, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversations = load_conversations(data)
    first = search(repository, conversations)
    count = repository.count_samples("tiny")
    of_folds = [s for s in repository.list_samples("tiny") if s.source == SOURCE]
    assert of_folds
    assert calibration_id(conversations) not in {sample.calibration_id for sample in of_folds}
    monkeypatch.setattr(EvaluatorRecipe, "__call__", lambda _self: pytest.fail("evaluated again"))
    assert search(repository, conversations) == first
    assert repository.count_samples("tiny") == count


def test_a_ranking_from_elsewhere_has_seen_no_fold(repository: Repository, data: Path, checkpoint: Path) -> None:
    register_by_weights(repository, "by-weights", checkpoint)
    result = search(repository, load_conversations(data), "by-weights")
    for target in result.targets:
        assert target.cross_validation is not None
        for fold in target.cross_validation.folds:
            assert fold.kl == pytest.approx(fold.kl_ranked, rel=1e-4)


def test_too_few_conversations_are_searched_without(repository: Repository, data: Path) -> None:
    result = search(repository, load_conversations(data, 6))
    assert [target.cross_validation for target in result.targets] == [None, None]


def test_the_latest_search_of_a_target_is_what_predictors_learn(repository: Repository, data: Path) -> None:
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
    assert found[result.targets[0].budget].kl == 0.5
    assert len(found) == 2
    assert cross_validated_targets(repository, "tiny", "another set") == {}
