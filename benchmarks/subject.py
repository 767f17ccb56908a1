"""The model that benchmarks search: the reference, its calibration and validation conversations, and what was found."""

import shutil
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.kept_metrics import KeptMetrics
from engines.local import LocalEngine
from lop.workflows.measuring import RECIPES
from mcts.result import SearchResult
from mcts.sensitivity import scan_sensitivity
from mcts.settings import SearchSettings
from mcts.worker import run_search
from pruning.allocators.evolution import Score
from pruning.anatomy.architecture import Architecture
from pruning.arrays import FloatArray
from pruning.checkpoints.anatomy_reader import anatomy_of
from pruning.checkpoints.loading import load_model, load_processor
from pruning.data.batches import Batch, make_batches
from pruning.data.conversations import Conversation, calibration_id, load_conversations
from pruning.data.folds import fold_numbers
from pruning.measuring.evaluation import ConfigurationEvaluator
from pruning.measuring.importance import ranking_of
from pruning.measuring.metrics import Metrics, Widths
from pruning.measuring.statistics import ModelStatistics, StatisticsKind, measure_statistics
from pruning.planning.added_biases import bias_parameters
from pruning.planning.plan_parts import content_id
from pruning.planning.ranking import Ranking
from pruning.planning.scope import Scope
from pruning.planning.space import Space
from pruning.planning.target import ffn_parameter_budget
from storage.records import BINARY, CalibrationRecord, ModelRecord, Sample
from storage.sql_repository import SqlRepository, open_repository

REFERENCE = Path(__file__).parent.parent / "reference"
SECOND = REFERENCE / "second"
"""Below it, the second model; its conversations are the reference's."""
WORK_DIR = Path(__file__).parent / ".work"
MODEL_ID = "reference"


class Subject:
    """A reference model as a benchmark uses it.

    Args:
        reference: folder with model/ and data/; without data/, as the second model's, the conversations are the
            reference's.
        num_conversations: calibration conversations that configurations are scored on, None for all; statistics and
            the ranking come from all of them.
        fresh: forget what other runs have measured. Else it is read again.
    """

    def __init__(self, reference: Path, num_conversations: int | None, *, fresh: bool) -> None:
        self.folder = reference / "model"
        self.processor = load_processor(self.folder)
        data = reference / "data" if (reference / "data").is_dir() else REFERENCE / "data"
        everything = load_conversations(data / "calibration.json")
        self._conversations = {
            "all": everything,
            "calibration": everything[:num_conversations],
            "enumeration": everything[:4],
            "validation": load_conversations(data / "validation.json"),
        }
        self.anatomy = anatomy_of(load_model(self.folder))
        self._statistics: dict[StatisticsKind, tuple[ModelStatistics, float]] = {}
        self.ranking = ranking_of(self.statistics(StatisticsKind.ACTIVATIONS)[0], self.anatomy)
        self._evaluators: dict[tuple[str, str], ConfigurationEvaluator] = {}
        self._kept: dict[tuple[str, str], KeptMetrics] = {}
        if fresh:
            shutil.rmtree(WORK_DIR, ignore_errors=True)
        WORK_DIR.mkdir(exist_ok=True)

    @property
    def num_conversations(self) -> int:
        """Calibration conversations that configurations are scored on."""
        return len(self._conversations["calibration"])

    def budget(self, sparsity: float, round_to: int) -> int:
        """FFN parameters to keep."""
        return ffn_parameter_budget(self.anatomy, sparsity, Scope.FFN, round_to=round_to)

    def statistics(self, kind: StatisticsKind) -> tuple[ModelStatistics, float]:
        """What allocators work from, by the product's recipe, and the seconds that measuring took."""
        if kind not in self._statistics:
            recipe = RECIPES[kind]
            used = self._conversations["all"][: recipe.num_conversations]
            model = load_model(self.folder)
            started = time.perf_counter()
            batches = make_batches(used, self.processor, batch_size=recipe.batch_size)
            self._statistics[kind] = measure_statistics(kind, model, batches), time.perf_counter() - started
        return self._statistics[kind]

    def scan(self, space: Space, *, by_kl: bool = False) -> tuple[FloatArray, float]:
        """The one-decision scan [N, K], and its seconds."""
        started = self.seconds
        return scan_sensitivity(space, self.score(space, by_kl=by_kl)), self.seconds - started

    def score(self, space: Space, *, by_kl: bool = False) -> Score:
        """Measures choices of `space` on the calibration conversations; `by_kl`: their score is their KL."""
        return lambda choices: self._measure_all([space.architecture(choice) for choice in choices], by_kl=by_kl)

    def _measure_all(self, architectures: Sequence[Architecture], *, by_kl: bool) -> list[Metrics]:
        kept = self.kept("calibration")
        found = [kept(self.anatomy.ffn_widths(architecture)) for architecture in architectures]
        return [metrics.scored_by_kl() for metrics in found] if by_kl else found

    def evaluate(self, split: str, widths: Widths, ranking: Ranking | None = None) -> Metrics:
        """Metrics of one configuration [L] on a split; each is measured once."""
        return self.kept(split, ranking)(widths)

    def kept(self, split: str, ranking: Ranking | None = None) -> KeptMetrics:
        """What is measured on a split, by the model's ranking or another one."""
        ranking = ranking or self.ranking
        key = (split, ranking.sha256)
        if key not in self._kept:
            conversations = calibration_id(self._conversations[split])
            identity = content_id({"ranking": ranking.sha256, "data": conversations})
            path = WORK_DIR / f"metrics-{split}-{identity}.jsonl"
            self._kept[key] = KeptMetrics(path, lambda: self.evaluator(split, ranking))
        return self._kept[key]

    @property
    def seconds(self) -> float:
        """A clock: this process's, ahead of it by what was remembered of the calibration conversations."""
        return time.perf_counter() + self.kept("calibration").remembered_seconds

    def evaluator(self, split: str, ranking: Ranking | None = None) -> ConfigurationEvaluator:
        """The evaluator of a split, by the model's ranking or another one."""
        ranking = ranking or self.ranking
        key = (split, ranking.sha256)
        if key not in self._evaluators:
            # The validation split is large, and its configurations have little in common.
            self._evaluators[key] = ConfigurationEvaluator(
                load_model(self.folder),
                self.batches(split),
                ranking,
                folds=fold_numbers(self._conversations[split]),
                cache_bytes=0 if split == "validation" else None,
            )
        return self._evaluators[key]

    @property
    def answer_tokens(self) -> int:
        """Tokens that one configuration is scored on, those of the answers in the calibration conversations."""
        return self.evaluate("calibration", tuple(layer.ffn_width for layer in self.anatomy.layers)).num_tokens

    def batches(self, split: str) -> list[Batch]:
        """The conversations of a split."""
        return make_batches(self._conversations[split], self.processor)

    def widths(self, sample: Sample) -> Widths:
        """FFN widths [L] that were scored."""
        return self.anatomy.ffn_widths(sample.architecture)

    def kept_parameters(self, widths: Widths, ranking: Ranking | None) -> int:
        """FFN parameters that are kept, biases that compensation adds included."""
        layers = self.anatomy.layers
        kept = sum(w * layer.ffn_parameters_per_channel for w, layer in zip(widths, layers, strict=True))
        if ranking is not None and ranking.compensates:
            added = bias_parameters(self.anatomy)
            kept += sum(b for b, w, layer in zip(added, widths, layers, strict=True) if w < layer.ffn_width)
        return kept

    def search(self, settings: SearchSettings, *, by_kl: bool = False) -> tuple[SearchResult, list[float]]:
        """One search in a database of its own, and the seconds of each target; those of the shared scan are divided.

        Evaluations that another search has done are remembered, and count the seconds that they took.
        """
        marks: dict[str, float] = {}
        started = self.seconds

        def progress(_done: int, _total: int, target: str, _best: Metrics | None, /) -> None:
            marks[target] = self.seconds - started

        with TemporaryDirectory() as folder:
            repository = self.repository(Path(folder) / "search.db")
            engine = LocalEngine(lambda: partial(self._measure_all, by_kl=by_kl))
            result = run_search(repository, MODEL_ID, self.calibration_id, engine, settings, progress)
        return result, self._seconds_per_target(result, marks)

    @staticmethod
    def _seconds_per_target(result: SearchResult, marks: dict[str, float]) -> list[float]:
        ends = [marks[target.label] for target in result.targets]
        scan = marks.get("sensitivity scan", 0.0)
        starts = [scan, *ends[:-1]]
        return [end - start + scan / len(ends) for start, end in zip(starts, ends, strict=True)]

    @property
    def calibration_id(self) -> str:
        """Of the conversations that configurations are scored on."""
        return calibration_id(self._conversations["calibration"])

    def repository(self, path: Path) -> SqlRepository:
        """The database at `path`, made if need be, with the model and its calibration set."""
        exists = path.exists()
        repository = open_repository(f"sqlite:///{path}", create=True)
        if exists:
            return repository
        now = datetime.now(UTC)
        sha256 = repository.put_artifact(self.ranking.to_bytes(), BINARY)
        repository.add_model(ModelRecord(MODEL_ID, self.anatomy, "0" * 64, sha256, str(self.folder), now))
        used: list[Conversation] = self._conversations["calibration"]
        answers = sum(len(c.turns) for c in used)
        repository.add_calibration(CalibrationRecord(calibration_id(used), "calibration", len(used), answers, now))
        return repository
