"""What the searched samples of the predictor's benchmark know of unseen conversations.

The product cross-validates a search from its scores by fold. The stored samples are of several searches and rounds, and
older than scores by fold: at every searched target the best of them are scored again, and what would have been chosen
among those without a fold is judged on it.
"""

import hashlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import typer

from benchmarks.collect import SAMPLES_DIR, TRAINED_FILE, TRAINED_TARGETS
from benchmarks.stored_samples import read_samples
from benchmarks.subject import MODEL_ID, REFERENCE, Subject
from engines.local import LocalEngine
from engines.memo import MemoisedEvaluator
from lop.workflows.measuring import record_calibration
from lop.workflows.registration import register_model
from mcts.result import SearchResult, TargetResult
from mcts.settings import SearchSettings
from pruning.anatomy.architecture import DENSE
from pruning.atomic_file import replace_file
from pruning.data.conversations import load_conversations
from pruning.errors import DatasetError
from pruning.planning.prices import ffn_parameters
from storage.sql_repository import open_repository
from values.cross_validation import CrossValidation

FILE = SAMPLES_DIR / "cross_validation.json"
NUM_BEST = 32
"""Samples of a target that are scored again: what is best without a fold is among the best of all."""


def main() -> None:
    """Write cross_validation.json."""
    subject = Subject(REFERENCE, None, fresh=False)
    samples = [sample for _, sample in read_samples(SAMPLES_DIR / TRAINED_FILE, subject)]
    settings = SearchSettings(sparsities=TRAINED_TARGETS)
    space, price = settings.space(subject.anatomy), ffn_parameters(subject.anatomy)
    conversations = load_conversations(REFERENCE / "data" / "calibration.json")
    with (
        TemporaryDirectory() as folder,
        open_repository(f"sqlite:///{Path(folder) / 'samples.db'}", create=True) as repository,
    ):
        model = register_model(repository, MODEL_ID, REFERENCE / "model", conversations)
        calibration = record_calibration(repository, conversations, "calibration.json")
        evaluate = LocalEngine(lambda: subject.evaluator("calibration"))
        memo = MemoisedEvaluator(repository, MODEL_ID, model.ranking_sha256, calibration.id, evaluate, "benchmark")
        found = []
        for target in settings.resolve_targets(subject.anatomy):
            within = [s for s in samples if price.cost(s.architecture) <= target.budget]
            best = sorted(within, key=lambda sample: sample.metrics.kl)
            choices = [c for s in best if (c := space.choice_of(s.architecture)) is not None][:NUM_BEST]
            metrics = memo([space.architecture(choice) for choice in choices])
            found.append(TargetResult.of(target, space, dict(zip(choices, metrics, strict=True))))
            print(f"{target.label}: best {found[-1].metrics.kl:.5f}", flush=True)  # noqa: T201
        (dense,) = memo([DENSE])
        result = SearchResult(tuple(found), 0).cross_validated(dense)
    documents = {str(x.budget): x.cross_validation.to_dict() for x in result.targets if x.cross_validation is not None}
    document = {"csv_sha256": _csv_sha256(), "targets": documents}
    replace_file(FILE, (json.dumps(document, indent=1) + "\n").encode())


def read_cross_validated() -> dict[int, CrossValidation]:
    """By budget, what `main` wrote; raises DatasetError if it is of other samples."""
    document = json.loads(FILE.read_bytes())
    if document["csv_sha256"] != _csv_sha256():
        raise DatasetError(
            "the cross-validation must be of the stored samples",
            values=f"{FILE} says {document['csv_sha256'][:12]}, {TRAINED_FILE} has {_csv_sha256()[:12]}",
            remedy="Measure it again with `python -m benchmarks.cross_validated`",
        )
    return {int(budget): CrossValidation.from_dict(found) for budget, found in document["targets"].items()}


def _csv_sha256() -> str:
    return hashlib.sha256((SAMPLES_DIR / TRAINED_FILE).read_bytes()).hexdigest()


if __name__ == "__main__":
    typer.run(main)
