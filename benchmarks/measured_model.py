"""A model on fixed conversations, as benchmarks measure it: what was scored once is kept, whoever asks for it again."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.kept_metrics import KeptMetrics
from benchmarks.kept_statistics import kept_statistics
from lop.workflows.measuring import RECIPES
from mcts.sensitivity import scan_sensitivity
from pruning.allocators.evolution import Score
from pruning.anatomy.architecture import DENSE, Architecture
from pruning.arrays import FloatArray
from pruning.checkpoints.anatomy_reader import anatomy_of
from pruning.checkpoints.loading import load_model, load_processor
from pruning.data.batches import Batch, make_batches
from pruning.data.conversations import Conversation, calibration_id
from pruning.data.folds import fold_numbers
from pruning.measuring.evaluation import ConfigurationEvaluator
from pruning.measuring.importance import ranking_of
from pruning.measuring.metrics import Metrics
from pruning.measuring.statistics import ModelStatistics, StatisticsKind, measure_statistics
from pruning.planning.plan_parts import content_id
from pruning.planning.ranking import Ranking
from pruning.planning.space import Space

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ALL, CALIBRATION, VALIDATION = "all", "calibration", "validation"


class MeasuredModel:
    """A checkpoint, its ranking, and metrics of what is cut from it.

    Args:
        folder: of the checkpoint.
        conversations: by split. Statistics and the ranking come from `ALL`, searches score on `CALIBRATION`.
        work: where metrics are kept, which this makes.
        load: reads the model, in the type that it is measured in.
    """

    def __init__(
        self,
        folder: Path,
        conversations: Mapping[str, list[Conversation]],
        work: Path,
        *,
        load: "Callable[[Path], PreTrainedModel]" = load_model,
    ) -> None:
        self.folder, self._conversations, self._work, self._load = folder, conversations, work, load
        self.processor = load_processor(folder)
        self.anatomy = anatomy_of(load(folder))
        self._statistics: dict[StatisticsKind, tuple[ModelStatistics, float]] = {}
        self._evaluators: dict[tuple[str, str], ConfigurationEvaluator] = {}
        self._kept: dict[tuple[str, str], KeptMetrics] = {}
        work.mkdir(parents=True, exist_ok=True)

    @cached_property
    def ranking(self) -> Ranking:
        """The ranking that a model is registered with."""
        return ranking_of(self.statistics(StatisticsKind.ACTIVATIONS)[0], self.anatomy)

    @property
    def num_conversations(self) -> int:
        """Calibration conversations that configurations are scored on."""
        return len(self._conversations[CALIBRATION])

    @property
    def calibration_id(self) -> str:
        """Of the conversations that configurations are scored on."""
        return calibration_id(self._conversations[CALIBRATION])

    def statistics(self, kind: StatisticsKind) -> tuple[ModelStatistics, float]:
        """What allocators work from, by the product's recipe, and the seconds that measuring took."""
        if kind not in self._statistics:
            recipe = RECIPES[kind]
            used = self._conversations[ALL][: recipe.num_conversations]
            batches = make_batches(used, self.processor, batch_size=recipe.batch_size)
            self._statistics[kind] = kept_statistics(
                self._work, kind, self.folder, used, lambda: measure_statistics(kind, self._load(self.folder), batches)
            )
        return self._statistics[kind]

    def scan(self, space: Space, *, by_kl: bool = False, most: int | None = None) -> tuple[FloatArray, float]:
        """The one-decision scan [N, K] of at most so many evaluations, and its seconds."""
        started = self.seconds
        return scan_sensitivity(space, self.score(space, by_kl=by_kl), most=most), self.seconds - started

    def score(self, space: Space, *, by_kl: bool = False) -> Score:
        """Measures choices of `space` on the calibration conversations; `by_kl`: their score is their KL."""
        return lambda choices: self.measure_all([space.architecture(choice) for choice in choices], by_kl=by_kl)

    def measure_all(self, architectures: Sequence[Architecture], *, by_kl: bool = False) -> list[Metrics]:
        """Metrics of each of `architectures` [n] on the calibration conversations."""
        found = [self.measure(CALIBRATION, architecture) for architecture in architectures]
        return [metrics.scored_by_kl() for metrics in found] if by_kl else found

    def measure(self, split: str, architecture: Architecture, ranking: Ranking | None = None) -> Metrics:
        """Metrics on a split, by the model's ranking or another one; each is measured once."""
        return self.kept(split, ranking)(architecture)

    def kept(self, split: str, ranking: Ranking | None = None) -> KeptMetrics:
        """What is measured on a split, by the model's ranking or another one."""
        ranking = ranking or self.ranking
        key = (split, ranking.sha256)
        if key not in self._kept:
            conversations = calibration_id(self._conversations[split])
            identity = content_id({"ranking": ranking.sha256, "data": conversations})
            path = self._work / f"metrics-{split}-{identity}.jsonl"
            self._kept[key] = KeptMetrics(path, lambda: self.evaluator(split, ranking), self.anatomy)
        return self._kept[key]

    @property
    def seconds(self) -> float:
        """A clock: this process's, ahead of it by what was remembered of the calibration conversations."""
        return time.perf_counter() + self.kept(CALIBRATION).remembered_seconds

    def evaluator(self, split: str, ranking: Ranking | None = None) -> ConfigurationEvaluator:
        """The evaluator of a split, by the model's ranking or another one."""
        ranking = ranking or self.ranking
        key = (split, ranking.sha256)
        if key not in self._evaluators:
            # The validation split is large, and its configurations have little in common.
            self._evaluators[key] = ConfigurationEvaluator(
                self._load(self.folder),
                self.batches(split),
                ranking,
                folds=fold_numbers(self._conversations[split]),
                cache_bytes=0 if split == VALIDATION else None,
            )
        return self._evaluators[key]

    @property
    def answer_tokens(self) -> int:
        """Tokens that one configuration is scored on, those of the answers in the calibration conversations."""
        return self.measure(CALIBRATION, DENSE).num_tokens

    def batches(self, split: str) -> list[Batch]:
        """The conversations of a split."""
        return make_batches(self._conversations[split], self.processor)
