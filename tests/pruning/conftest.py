"""Tiny models and data for the domain's tests."""

import os
from pathlib import Path

import pytest
import torch
import transformers
from transformers import PreTrainedModel

import lop
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.checkpoints import registering
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.data.conversations import Conversation, load_conversations
from tests.tiny_models import save_tiny_checkpoint, write_conversations


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers builds pruned models by itself, until the test is over.

    `make test-newest` sets LOP_NEWEST: then the version that is installed is taken for a tested one.
    """
    if os.environ.get("LOP_NEWEST"):
        monkeypatch.setattr(registering, "TESTED", (transformers.__version__.rpartition(".")[0],))
    for name in ("post_init", "_load_pretrained_model", "_finalize_model_loading"):
        monkeypatch.setattr(PreTrainedModel, name, PreTrainedModel.__dict__[name])
    lop.register_transformers()


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
