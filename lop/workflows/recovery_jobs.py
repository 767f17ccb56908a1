"""Recovery as a job: its data sets, its place, what is told of it while it runs and what is told in the end."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lop.workflows.recovering import split_data
from pruning.data.conversations import Conversation
from recovery.recipe import Recipe
from service.jobs.reporting import JobReporter
from service.jobs.settings import RecoverJob

if TYPE_CHECKING:
    from recovery.recover import Data, Ears
    from recovery.scores import AnswerScores

_logger = logging.getLogger("lop.jobs")


def split_for(recipe: Recipe, loaded: Mapping[str, tuple[str, list[Conversation]]]) -> "Data":
    """From the name and the conversations of the data sets `train`, `selection` and `validation`; the first is there.

    Raises DatasetError if one conversation is in two parts, or there are too few to keep some back.
    """
    parts = {part: conversations for part, (_, conversations) in loaded.items()}
    return split_data(
        parts["train"],
        parts.get("selection"),
        parts.get("validation"),
        recipe,
        name=loaded["train"][0],
        on_note=_logger.warning,
    )


def recovered_name(cut: str, job: RecoverJob) -> str:
    """Of the folder that is written: that of the cut checkpoint, and by what it was trained."""
    what = json.dumps([job.recipe.key, job.dataset, job.selection, job.validation])
    return f"{cut}-recovered-{hashlib.sha256(what.encode()).hexdigest()[:12]}"


def ears_of(reporter: JobReporter) -> "Ears":
    """Tells the job's reporter, which may raise to stop the training at any step."""
    from recovery.recover import Ears
    from recovery.training import Watcher

    best: float | None = None
    last = (0, 0, 0.0)

    def tell() -> None:
        done, total, loss = last
        reporter.step(done, total, "training", best, loss)

    def on_step(done: int, total: int, loss: float, _speed: float) -> None:
        nonlocal last
        last = done, total, loss
        tell()

    def on_scores(step: int, scores: "AnswerScores", is_best: bool) -> None:
        nonlocal best
        if is_best:
            best = scores.mean_kl
            tell()
        _logger.info("step %d: KL %.4g, exact answers %.1f%%", step, scores.mean_kl, 100 * scores.accuracy)

    return Ears(
        stage=lambda label: lambda done, total: reporter.step(done, total, label),
        watcher=Watcher(on_step, on_scores),
        on_note=_logger.warning,
    )


def outcome_in(folder: Path) -> dict[str, Any]:
    """What `service.jobs.responses.RecoveryOutcome` says, from the report in a recovered checkpoint."""
    from recovery.report import REPORT_NAME

    report = json.loads((folder / REPORT_NAME).read_text(encoding="utf-8"))
    part = "validation" if "validation" in report else "selection"
    before, after = report[part]["before"], report[part]["after"]
    return {
        "written": report["written"],
        "why": report["why"],
        "steps": report["best_step"] if report["written"] == "recovered" else 0,
        "judged_on": part,
        "kl": [before["kl"], after["kl"]],
        "percent_of_dense": [before["percent_of_dense"]["percent"], after["percent_of_dense"]["percent"]],
        "interval": after["percent_of_dense"]["interval"],
    }
