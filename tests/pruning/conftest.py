"""Tiny models and data for the domain's tests."""

from pathlib import Path

import pytest
import torch

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.data.conversations import Conversation, load_conversations
from tests.tiny_models import save_tiny_checkpoint, write_conversations


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny sharded LLaVA checkpoint with its processor. Read-only."""
    return save_tiny_checkpoint(tmp_path_factory.mktemp("dense") / "model", shard="60KB")


@pytest.fixture(scope="session")
def anatomy(checkpoint: Path) -> ModelAnatomy:
    return read_anatomy(checkpoint)


@pytest.fixture(scope="session")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> list[Conversation]:
    return load_conversations(write_conversations(tmp_path_factory.mktemp("data")))
