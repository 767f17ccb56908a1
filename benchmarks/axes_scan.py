"""How many evaluations a scan of the joint space takes, on a model of 32 layers whose scores are made up."""

from collections.abc import Sequence

import torch

from benchmarks.serving import large_model
from mcts.sensitivity import MAX_SCAN_EVALUATIONS, scan_sensitivity
from pruning.checkpoints.anatomy_reader import anatomy_of
from pruning.measuring.metrics import Metrics
from pruning.planning.axis_spaces import SpaceName, coarse_space
from pruning.planning.space import Choice


def scan_evaluations_32_layers() -> int:
    """Evaluations that the scan asks for."""
    with torch.device("meta"):
        anatomy = anatomy_of(large_model())
    asked: list[Choice] = []

    def score(choices: Sequence[Choice]) -> list[Metrics]:
        asked.extend(choices)
        return [Metrics(0.1 * len(set(choice)), 0.0, 1.0, 1, 1) for choice in choices]

    scan_sensitivity(coarse_space(anatomy, SpaceName.ALL), score, most=MAX_SCAN_EVALUATIONS)
    return len(asked)
