"""The samples that the predictor's benchmark learns from and is judged by, searched on the reference model.

Targets in the training list are searched one after another; rounds follow, in which the predictor leads the search at
budgets that keep away from the targets left out, which are searched on their own. All on every calibration
conversation: what is best on a few is not what is best on others. Takes about an hour on two cores. Killed, it is run
again and goes on with the round that was not finished (benchmarks/.work). What it writes is in the repository:
reference/search/{trained,held_out}.csv, each with a JSON that says what it is of. The one-layer scan, with which every
search begins, is in both; no other configuration is.
"""

import json
from pathlib import Path

import typer

from benchmarks.stored_samples import Collection, label_rounds, write_samples
from benchmarks.subject import MODEL_ID, REFERENCE, WORK_DIR, Subject
from engines.local import LocalEngine
from lop.workflows.rounds import RoundReport, RoundSettings, train_in_rounds
from mcts.progress import SearchProgressBar
from mcts.settings import SearchSettings
from mcts.worker import run_search
from policy_model.training import TrainingSettings
from pruning.atomic_file import replace_file
from storage.contract import Repository

TRAINED_TARGETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
HELD_OUT_TARGETS = (0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75)
EVALUATIONS = 200
"""Configurations that a search scores for a target: the search that plans are compared with, in quality and in time."""

NUM_ROUNDS = 3
SEED = 0

SAMPLES_DIR = REFERENCE / "search"
TRAINED_FILE = "trained.csv"
HELD_OUT_FILE = "held_out.csv"


def main() -> None:
    """Search, and write the samples."""
    subject = Subject(REFERENCE, None, fresh=False)
    evaluate = LocalEngine(lambda: subject.evaluator("calibration"))
    rounds = RoundSettings(avoid=HELD_OUT_TARGETS)
    with (
        subject.repository(WORK_DIR / "trained.db") as trained,
        subject.repository(WORK_DIR / "held_out.db") as held_out,
        SearchProgressBar() as progress,
    ):
        for repository, targets in ((trained, TRAINED_TARGETS), (held_out, HELD_OUT_TARGETS)):
            settings = SearchSettings(sparsities=targets, num_evaluations=EVALUATIONS, seed=SEED)
            run_search(repository, MODEL_ID, subject.calibration_id, evaluate, settings, progress)
        ends = RoundEnds(WORK_DIR / "trained_rounds.json", trained)
        if not ends.counts:
            ends.add()
        write_samples(
            SAMPLES_DIR / HELD_OUT_FILE,
            ((0, sample) for sample in held_out.list_samples(MODEL_ID)),
            subject,
            Collection(HELD_OUT_TARGETS, EVALUATIONS, 0, 0.0),
        )

        def note(report: RoundReport) -> None:
            ends.add()
            print(report.to_dict(), flush=True)  # noqa: T201

        train_in_rounds(
            trained,
            MODEL_ID,
            subject.calibration_id,
            evaluate,
            TrainingSettings(seed=SEED),
            NUM_ROUNDS,
            rounds,
            first_round=len(ends.counts),
            on_search=progress,
            on_round=note,
        )
        write_samples(
            SAMPLES_DIR / TRAINED_FILE,
            label_rounds(trained.list_samples(MODEL_ID), ends.counts),
            subject,
            Collection(TRAINED_TARGETS, EVALUATIONS, NUM_ROUNDS, rounds.margin),
        )


class RoundEnds:
    """How many samples a database held when the searches, and each round, were finished; kept in a file."""

    def __init__(self, path: Path, repository: Repository) -> None:
        self._path, self._repository = path, repository
        self.counts: list[int] = json.loads(path.read_bytes()) if path.exists() else []

    def add(self) -> None:
        """The searches, or one more round, are finished now."""
        self.counts.append(len(self._repository.list_samples(MODEL_ID)))
        replace_file(self._path, json.dumps(self.counts).encode())


if __name__ == "__main__":
    typer.run(main)
