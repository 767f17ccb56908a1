"""Probes after a search: stored, the same again, none where there is nothing to learn from, none that cannot be."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from lop.workflows.probing import DEFAULT_PROBES, num_probes
from lop.workflows.searching import search_model
from mcts.settings import SearchMethod, SearchSettings
from policy_model.probing import SOURCE
from pruning.data.conversations import Conversation, load_conversations
from pruning.errors import InputError
from pruning.measuring.metrics import Metrics
from pruning.planning.axis_spaces import SpaceName
from pruning.planning.scope import Scope
from storage.contract import Repository
from storage.sql_repository import open_repository

SEARCH = SearchSettings(
    sparsities=(0.3, 0.6), scope=Scope.DECODER, axes=SpaceName.ALL, num_evaluations=40, num_levels=3
)
COUNT = 4


@pytest.fixture
def conversations(data: Path) -> list[Conversation]:
    return load_conversations(data)[:12]


def probes(repository: Repository) -> set[tuple[object, float]]:
    return {(s.architecture, s.metrics.kl) for s in repository.list_samples("tiny") if s.source.startswith(SOURCE)}


def test_probes_change_nothing_of_the_result_and_an_interrupted_search_makes_the_same(
    repository: Repository, registered: Path, conversations: list[Conversation], tmp_path: Path
) -> None:
    told: list[tuple[int, int, str]] = []
    last: int | None = None

    def progress(done: int, total: int, target: str, _best: Metrics | None, /) -> None:
        told.append((done, total, target))
        if done == last:
            raise KeyboardInterrupt

    (tmp_path / "other.db").write_bytes(registered.read_bytes())
    with open_repository(f"sqlite:///{tmp_path / 'other.db'}") as other:
        without = search_model(other, "tiny", conversations, SEARCH, name="data")
        assert not probes(other)
        assert search_model(other, "tiny", conversations, SEARCH, name="data", probes=COUNT) == without
        undisturbed = probes(other)
    assert 0 < len(undisturbed) <= COUNT

    planned = without.scan_evaluations + 2 * SEARCH.num_evaluations + COUNT
    last = planned - 2
    with pytest.raises(KeyboardInterrupt):
        search_model(repository, "tiny", conversations, SEARCH, name="data", progress=progress, probes=COUNT)
    assert len(probes(repository)) < len(undisturbed)
    last = None
    search_model(repository, "tiny", conversations, SEARCH, name="data", progress=progress, probes=COUNT)
    assert probes(repository) == undisturbed
    assert {total for _, total, _ in told} == {planned}
    assert told[-1] == (planned, planned, SOURCE)


def test_too_few_samples_make_no_probes(
    repository: Repository, conversations: list[Conversation], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        search_model(repository, "tiny", conversations, replace(SEARCH, num_evaluations=2), name="data", probes=COUNT)
    assert not probes(repository)
    assert "no probes" in caplog.text


def test_samples_of_other_options_make_no_probes_and_the_search_is_not_lost(
    repository: Repository, conversations: list[Conversation], caplog: pytest.LogCaptureFixture
) -> None:
    other = replace(SEARCH, num_levels=6, num_evaluations=60)
    search_model(repository, "tiny", conversations, other, name="data", record=False)
    with caplog.at_level(logging.WARNING):
        search_model(repository, "tiny", conversations, replace(SEARCH, num_evaluations=5), name="data", probes=COUNT)
    assert not probes(repository)
    assert "no probes: a predictor is trained on the options that were searched" in caplog.text
    assert len(repository.list_searches("tiny")) == 1


def test_another_search_learns_from_earlier_probes(
    repository: Repository, conversations: list[Conversation], caplog: pytest.LogCaptureFixture
) -> None:
    search_model(repository, "tiny", conversations, SEARCH, name="data", probes=COUNT)
    first = probes(repository)
    with caplog.at_level(logging.WARNING):
        search_model(repository, "tiny", conversations, replace(SEARCH, seed=1), name="data", probes=3 * COUNT)
    assert first < probes(repository)  # none twice, and all stay
    assert not caplog.text


def test_probes_by_default_and_where_nothing_can_learn_from_them() -> None:
    assert num_probes(SEARCH, None) == DEFAULT_PROBES
    assert num_probes(replace(SEARCH, method=SearchMethod.EVOLUTION), None) == 0
    assert num_probes(replace(SEARCH, axes=SpaceName.ATTENTION), None) == 0
    assert num_probes(replace(SEARCH, axes=SpaceName.ATTENTION), 3) == 3
    with pytest.raises(InputError, match="space 'bits'"):
        num_probes(replace(SEARCH, axes=SpaceName.BITS), 3)
