"""Searched samples as files: a CSV of (round, sample), and beside it a JSON of what they were measured with.

A sample means nothing without its model, ranking and calibration set. The JSON names them, and the CSV's content, so
that a benchmark never learns from samples of another reference model, or from half a file: {"csv_sha256", "samples",
"fingerprint", "ranking_sha256", "calibration_id"} are checked, {"targets", "evaluations", "rounds", "margin"} are told.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.atomic_file import replace_file
from pruning.errors import DatasetError
from pruning.measuring.metrics import FoldMetrics, Metrics
from storage.records import Sample

if TYPE_CHECKING:
    from benchmarks.subject import Subject

_COLUMNS = (
    *("round", "source", "kl", "nll", "accuracy", "num_tokens", "num_answers", "seconds", "widths"),
    *("agreement", "folds"),
)
"""The last two are not in files from before they were measured, and empty of a sample that has none."""


@dataclass(frozen=True)
class Collection:
    """How samples were collected.

    Attributes:
        targets: sparsities that were searched.
        evaluations: configurations that a search scored for each.
        rounds: rounds that followed, in which the predictor led.
        margin: how far their budgets kept from the targets left out, as a fraction of the FFN parameters.
    """

    targets: tuple[float, ...]
    evaluations: int
    rounds: int
    margin: float


def description_path(path: Path) -> Path:
    """The JSON beside the CSV `path`."""
    return path.with_suffix(".json")


def write_samples(
    path: Path, samples: Iterable[tuple[int, Sample]], subject: "Subject", collection: Collection
) -> None:
    """`samples`, each with its round, and then what they are of: a CSV without its JSON is not read."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for number, sample in samples:
        m = sample.metrics
        numbers = [repr(m.kl), repr(m.nll), repr(m.accuracy), m.num_tokens, m.num_answers, f"{sample.seconds:.4f}"]
        agreement = "" if m.agreement is None else repr(m.agreement)
        writer.writerow(
            [
                number,
                sample.source,
                *numbers,
                " ".join(map(str, subject.anatomy.ffn_widths(sample.architecture))),
                agreement,
                " ".join(":".join(_short(value) for value in fold) for fold in m.folds or ()),
            ]
        )
    path.parent.mkdir(exist_ok=True)
    description_path(path).unlink(missing_ok=True)
    replace_file(path, text.getvalue().encode())
    describe(path, subject, collection)


def describe(path: Path, subject: "Subject", collection: Collection) -> None:
    """Write the JSON of the samples in `path`, which were measured on `subject`."""
    document = _identity(path, subject) | asdict(collection)
    replace_file(description_path(path), (json.dumps(document, indent=1) + "\n").encode())


def read_samples(path: Path, subject: "Subject") -> list[tuple[int, Sample]]:
    """What `write_samples` wrote, as (round, sample).

    Raises DatasetError if the samples are not of the subject's model, ranking and calibration set, or the CSV is not
    the one that was described.
    """
    try:
        found = json.loads(description_path(path).read_bytes())
        expected = _identity(path, subject)
    except (OSError, ValueError) as error:
        raise DatasetError(
            "stored samples are a CSV and a JSON that says what they are of",
            values=f"{path}: {error}",
            remedy="Collect them again with `python -m benchmarks.collect`",
        ) from error
    for name, value in expected.items():
        if found.get(name) != value:
            raise DatasetError(
                f"stored samples must be of this reference model: their {name} is another",
                values=f"{description_path(path)} says {found.get(name)}, found {value}",
                remedy="Collect them again with `python -m benchmarks.collect`",
            )
    from benchmarks.subject import MODEL_ID

    key = (MODEL_ID, subject.ranking.sha256, subject.calibration_id)
    return [
        (int(row["round"]), _sample(key, row, subject.anatomy))
        for row in csv.DictReader(io.StringIO(path.read_text("utf-8")))
    ]


def label_rounds(samples: Sequence[Sample], ends: Sequence[int]) -> list[tuple[int, Sample]]:
    """Each of `samples`, in the order of their storing, with its round.

    `ends` has how many there were at the end of the searches (round 0), of round 1 and so on; what came later belongs
    to the round that was not finished.
    """
    return [(sum(index >= end for end in ends), sample) for index, sample in enumerate(samples)]


def _identity(path: Path, subject: "Subject") -> dict[str, Any]:
    content = path.read_bytes()
    return {
        "csv_sha256": hashlib.sha256(content).hexdigest(),
        "samples": content.count(b"\n") - 1,
        "fingerprint": subject.anatomy.fingerprint,
        "ranking_sha256": subject.ranking.sha256,
        "calibration_id": subject.calibration_id,
    }


def _sample(key: tuple[str, str, str], row: dict[str, str], anatomy: ModelAnatomy) -> Sample:
    metrics = Metrics(
        kl=float(row["kl"]),
        nll=float(row["nll"]),
        accuracy=float(row["accuracy"]),
        num_tokens=int(row["num_tokens"]),
        num_answers=int(row["num_answers"]),
        agreement=float(row["agreement"]) if row.get("agreement") else None,
        folds=tuple(_fold(fold) for fold in row["folds"].split()) if row.get("folds") else None,
    )
    architecture = anatomy.architecture([int(w) for w in row["widths"].split()])
    return Sample(*key, architecture, metrics, float(row["seconds"]), row["source"])


def _short(value: float | None) -> str:
    """Counts as they are, what was measured to seven digits, which is what float32 has."""
    return "" if value is None else f"{value:.7g}"


def _fold(text: str) -> FoldMetrics:
    kl, accuracy, agreement, tokens, answers, root_kl = text.split(":")
    shares = float(kl), float(accuracy), float(agreement)
    return FoldMetrics(*shares, int(tokens), int(answers), float(root_kl) if root_kl else None)
