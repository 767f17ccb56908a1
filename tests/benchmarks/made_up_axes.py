"""A made-up model for `benchmarks.axes`: a real anatomy of four small layers, and metrics that take no forward pass."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.ablations import StairsLatency
from benchmarks.axes_models import AxesModel, Sizes
from benchmarks.axes_profile import WORKLOAD
from benchmarks.kept_metrics import KeptMetrics
from benchmarks.measured_model import MeasuredModel
from benchmarks.real_steps import Steps
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture
from pruning.checkpoints.anatomy_reader import anatomy_of
from pruning.measuring.metrics import Metrics
from pruning.measuring.statistics import ModelStatistics, StatisticsKind
from pruning.planning.latency_model import LatencyModel
from pruning.planning.ranking import Ranking
from tests.pruning.made_up import made_up_statistics


@cache
def anatomy() -> ModelAnatomy:
    """Four layers of 64 channels and two KV groups."""
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
    )
    with torch.device("meta"):
        return anatomy_of(LlamaForCausalLM(config))


class Interrupted(BaseException):
    """What stands for a kill."""


class MadeUpMetrics:
    """KL of what goes, layer by layer, and of what goes in neighbours at once; dies at evaluation `dies_at`."""

    def __init__(self, shift: float) -> None:
        self.shift = shift
        self.measured: list[Architecture] = []
        self.dies_at: int | None = None

    def __call__(self, architectures: Sequence[Architecture], /) -> list[Metrics]:
        found = []
        for architecture in architectures:
            if self.dies_at is not None and len(self.measured) >= self.dies_at:
                raise Interrupted
            self.measured.append(architecture)
            ffn = 1.0 - np.array(anatomy().ffn_widths(architecture)) / 64
            attention = 1.0 - np.array(anatomy().kv_groups(architecture)) / 2
            weights = np.array([4.0, 0.3, 0.2, 1.0])
            kl = float(weights @ (ffn**2 + 0.7 * attention**2) + 2.0 * ffn[1:] @ attention[:-1])
            kl *= 1.0 + self.shift
            found.append(Metrics(kl, 1.0 + kl, np.exp(-kl), 100, 20, agreement=np.exp(-kl / 2)))
        return found


class MadeUpModel(MeasuredModel):
    """Of one split and another, each with its own metrics."""

    def __init__(self, work: Path, metrics: dict[str, MadeUpMetrics]) -> None:
        self.anatomy, self._work, self._metrics, self._kept = anatomy(), work, metrics, {}
        work.mkdir(parents=True, exist_ok=True)

    @property
    def ranking(self) -> Ranking:
        return Ranking(tuple(np.arange(64, dtype=np.int32) for _ in range(4)), self.anatomy.fingerprint)

    @property
    def calibration_id(self) -> str:
        return "c" * 64

    def statistics(self, kind: StatisticsKind) -> tuple[ModelStatistics, float]:
        return made_up_statistics(self.anatomy, kind), 0.0

    def kept(self, split: str, _ranking: Ranking | None = None) -> KeptMetrics:
        key = (split, "")
        if key not in self._kept:
            self._kept[key] = KeptMetrics(
                self._work / f"metrics-{split}.jsonl", lambda: self._metrics[split], self.anatomy
            )
        return self._kept[key]


class MadeUpModels:
    """What `axes_models.MODELS` is to be, and what its models have measured, over all runs."""

    def __init__(self, names: Sequence[str]) -> None:
        self.metrics = {
            name: {"calibration": MadeUpMetrics(0.1 * index), "validation": MadeUpMetrics(0.1 * index + 0.05)}
            for index, name in enumerate(names)
        }
        self.makers = {name: self._maker(name) for name in names}

    def _maker(self, name: str) -> Callable[[Sizes, Path, Steps], AxesModel]:
        def make(_sizes: Sizes, work: Path, _steps: Steps) -> AxesModel:
            return AxesModel(MadeUpModel(work / name, self.metrics[name]), Path("nowhere"))

        return make

    @property
    def measured(self) -> list[tuple[str, str, Architecture]]:
        """Each evaluation: model, split, what was cut."""
        return [
            (name, split, architecture)
            for name, of in self.metrics.items()
            for split, metrics in of.items()
            for architecture in metrics.measured
        ]


def made_up_latency(_checkpoint: Path, _work: Path) -> LatencyModel:
    """Of a made-up machine."""
    return StairsLatency(anatomy(), WORKLOAD, seed=0)
