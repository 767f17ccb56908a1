"""A tiny dense model, a checkpoint cut from it, and conversations."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.cutting.prune_checkpoint import prune_checkpoint
from pruning.planning.plan import PruningPlan
from pruning.planning.ranking import Ranking
from tests.pruning.cut_models import WIDTHS, kept_groups, plan_for, random_ranking
from tests.tiny_models import save_tiny_checkpoint, write_conversations


@dataclass(frozen=True)
class Cut:
    """Folders of a pruned model and its dense one, and what it was cut by."""

    dense: Path
    pruned: Path
    plan: PruningPlan
    ranking: Ranking
    data: Path


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Cut:
    """Layers of four sizes, KV groups of some gone. Read-only."""
    folder = tmp_path_factory.mktemp("cut")
    dense = save_tiny_checkpoint(folder / "dense")
    anatomy = read_anatomy(dense)
    ranking = random_ranking(anatomy)
    plan = plan_for(anatomy, ranking, WIDTHS, kept_groups(anatomy))
    prune_checkpoint(dense, plan, ranking, folder / "pruned")
    return Cut(dense, folder / "pruned", plan, ranking, write_conversations(folder, count=16))
