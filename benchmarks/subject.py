"""The model that benchmarks of FFN widths search: a reference, its conversations, and what was found."""

from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measured_model import ALL, CALIBRATION, VALIDATION, MeasuredModel
from engines.local import LocalEngine
from mcts.result import SearchResult
from mcts.settings import SearchSettings
from mcts.worker import run_search
from pruning.data.conversations import calibration_id, load_conversations
from pruning.measuring.metrics import Metrics, Widths
from pruning.planning.added_biases import bias_parameters
from pruning.planning.ranking import Ranking
from pruning.planning.scope import Scope
from pruning.planning.target import ffn_parameter_budget
from storage.records import BINARY, CalibrationRecord, ModelRecord, Sample
from storage.sql_repository import SqlRepository, open_repository

REFERENCE = Path(__file__).parent.parent / "reference"
SECOND = REFERENCE / "second"
"""Below it, the second model; its conversations are the reference's."""
WORK_DIR = Path(__file__).parent / ".work"
MODEL_ID = "reference"
ENUMERATION = "enumeration"


class Subject(MeasuredModel):
    """A reference model as a benchmark uses it.

    Args:
        reference: folder with model/ and data/; without data/, as the second model's, the conversations are the
            reference's.
        num_conversations: calibration conversations that configurations are scored on, None for all; statistics and
            the ranking come from all of them.
        fresh: forget what other runs have measured. Else it is read again.
    """

    def __init__(self, reference: Path, num_conversations: int | None, *, fresh: bool) -> None:
        data = reference / "data" if (reference / "data").is_dir() else REFERENCE / "data"
        everything = load_conversations(data / "calibration.json")
        conversations = {
            ALL: everything,
            CALIBRATION: everything[:num_conversations],
            ENUMERATION: everything[:4],
            VALIDATION: load_conversations(data / "validation.json"),
        }
        if fresh:
            for path in WORK_DIR.glob("metrics-*.jsonl"):  # beside them lies what other benchmarks have found
                path.unlink()
        super().__init__(reference / "model", conversations, WORK_DIR)

    def budget(self, sparsity: float, round_to: int) -> int:
        """FFN parameters to keep."""
        return ffn_parameter_budget(self.anatomy, sparsity, Scope.FFN, round_to=round_to)

    def evaluate(self, split: str, widths: Widths, ranking: Ranking | None = None) -> Metrics:
        """Metrics of one configuration [L] on a split; each is measured once."""
        return self.measure(split, self.anatomy.architecture(widths), ranking)

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
            engine = LocalEngine(lambda: partial(self.measure_all, by_kl=by_kl))
            result = run_search(repository, MODEL_ID, self.calibration_id, engine, settings, progress)
        return result, self._seconds_per_target(result, marks)

    @staticmethod
    def _seconds_per_target(result: SearchResult, marks: dict[str, float]) -> list[float]:
        ends = [marks[target.label] for target in result.targets]
        scan = marks.get("sensitivity scan", 0.0)
        starts = [scan, *ends[:-1]]
        return [end - start + scan / len(ends) for start, end in zip(starts, ends, strict=True)]

    def repository(self, path: Path) -> SqlRepository:
        """The database at `path`, made if need be, with the model and its calibration set."""
        exists = path.exists()
        repository = open_repository(f"sqlite:///{path}", create=True)
        if exists:
            return repository
        now = datetime.now(UTC)
        sha256 = repository.put_artifact(self.ranking.to_bytes(), BINARY)
        repository.add_model(ModelRecord(MODEL_ID, self.anatomy, "0" * 64, sha256, str(self.folder), now))
        used = self._conversations[CALIBRATION]
        answers = sum(len(c.turns) for c in used)
        repository.add_calibration(CalibrationRecord(calibration_id(used), CALIBRATION, len(used), answers, now))
        return repository
