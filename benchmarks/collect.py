"""The samples that the predictor's benchmark learns from and is judged by, searched on the reference model.

Targets in the training list are searched one after another; rounds follow, in which the predictor leads the search at
budgets that keep away from the targets left out, which are searched on their own. All on every calibration
conversation: what is best on a few is not what is best on others. Takes about an hour on two cores. Killed, it is run
again and goes on (benchmarks/.work). What it writes is in the repository: reference/search/{trained,held_out}.csv.
Those files were made with a margin of 0.01 around the targets left out, which are searched here before the rounds; no
configuration is in both. A run that is resumed among the rounds counts what they added so far as searched.
"""

import csv
from collections.abc import Iterable
from pathlib import Path

import typer

from benchmarks.subject import MODEL_ID, REFERENCE, WORK_DIR, Subject
from lop.rounds import RoundReport, RoundSettings, train_in_rounds
from mcts.progress import SearchProgressBar
from mcts.settings import SearchSettings
from mcts.worker import run_search
from policy_model.training import TrainingSettings
from pruning.metrics import Metrics
from storage.records import Sample

TRAINED_TARGETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
HELD_OUT_TARGETS = (0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75)
EVALUATIONS = 200
NUM_ROUNDS = 3
SEED = 0

SAMPLES_DIR = REFERENCE / "search"
TRAINED_FILE = "trained.csv"
HELD_OUT_FILE = "held_out.csv"


def main() -> None:
    """Search, and write the samples."""
    subject = Subject(REFERENCE, None, fresh=False)
    evaluate = subject.evaluator("calibration")
    training = TrainingSettings(seed=SEED)
    with (
        subject.repository(WORK_DIR / "trained.db") as trained,
        subject.repository(WORK_DIR / "held_out.db") as held_out,
        SearchProgressBar() as progress,
    ):
        for repository, targets in ((trained, TRAINED_TARGETS), (held_out, HELD_OUT_TARGETS)):
            settings = SearchSettings(sparsities=targets, num_evaluations=EVALUATIONS, seed=SEED)
            run_search(repository, MODEL_ID, subject.calibration_id, evaluate, settings, progress)
        searched = trained.list_samples(MODEL_ID)
        write_samples(SAMPLES_DIR / HELD_OUT_FILE, ((0, sample) for sample in held_out.list_samples(MODEL_ID)))
        write_samples(SAMPLES_DIR / TRAINED_FILE, ((0, sample) for sample in searched))
        numbered = [(0, sample) for sample in searched]

        def note(report: RoundReport) -> None:
            added = trained.list_samples(MODEL_ID)[len(numbered) :]
            numbered.extend((report.number, sample) for sample in added)
            print(report.to_dict(), flush=True)  # noqa: T201

        train_in_rounds(
            trained,
            MODEL_ID,
            subject.calibration_id,
            evaluate,
            training,
            NUM_ROUNDS,
            RoundSettings(avoid=HELD_OUT_TARGETS),
            on_search=progress,
            on_round=note,
        )
        write_samples(SAMPLES_DIR / TRAINED_FILE, numbered)


def write_samples(path: Path, samples: Iterable[tuple[int, Sample]]) -> None:
    """A CSV of (round, sample): round, source, KL, NLL, accuracy, counts, seconds, widths."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["round", "source", "kl", "nll", "accuracy", "num_tokens", "num_answers", "seconds", "widths"])
        for number, sample in samples:
            m = sample.metrics
            numbers = [repr(m.kl), repr(m.nll), repr(m.accuracy), m.num_tokens, m.num_answers, f"{sample.seconds:.4f}"]
            writer.writerow([number, sample.source, *numbers, " ".join(map(str, sample.widths))])


def read_samples(path: Path, subject: Subject) -> list[tuple[int, Sample]]:
    """What `write_samples` wrote, as samples of the subject's model, ranking and calibration set."""
    found = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            metrics = Metrics(
                kl=float(row["kl"]),
                nll=float(row["nll"]),
                accuracy=float(row["accuracy"]),
                num_tokens=int(row["num_tokens"]),
                num_answers=int(row["num_answers"]),
            )
            widths = tuple(int(w) for w in row["widths"].split())
            key = (MODEL_ID, subject.ranking.sha256, subject.calibration_id)
            found.append((int(row["round"]), Sample(*key, widths, metrics, float(row["seconds"]), row["source"])))
    return found


if __name__ == "__main__":
    typer.run(main)
