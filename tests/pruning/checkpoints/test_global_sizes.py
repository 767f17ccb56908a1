"""What transformers warns of, where its own code reads global sizes of a model whose layers differ."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoConfig
from transformers.utils.logging import warning_once

import lop
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.cutting.prune_checkpoint import prune_checkpoint
from tests.pruning.cut_models import WIDTHS, plan_for, random_ranking
from tests.tiny_models import save_tiny_checkpoint


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """All that transformers says, also what it has said before."""
    warning_once.cache_clear()
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.WARNING, logger.name):
        yield caplog
    logger.removeHandler(caplog.handler)


def test_loading_warns_of_nothing(tmp_path: Path, heard: pytest.LogCaptureFixture) -> None:
    dense = save_tiny_checkpoint(tmp_path / "dense")
    anatomy = read_anatomy(dense)
    ranking = random_ranking(anatomy)
    pruned = prune_checkpoint(dense, plan_for(anatomy, ranking, WIDTHS), ranking, tmp_path / "pruned")
    heard.clear()
    warning_once.cache_clear()
    model = lop.load_pruned(pruned)
    model.save_pretrained(tmp_path / "again")
    assert "global config value" not in heard.text
    warning_once.cache_clear()
    AutoConfig.from_pretrained(pruned)
    assert "global config value" in heard.text
