"""Plans chosen for after recovery: finalists of a search are really recovered, as many as the minutes allow.

Every recovered one is a sample of the conversations that decided, whose protocol is the training. So a command that was
killed goes on from what is stored, the seconds included: more minutes recover more.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lop.workflows.measuring import record_calibration
from lop.workflows.recovered_targets import (
    SELECTION,
    VALIDATION,
    Finalist,
    RecoveredTarget,
    document_of,
    fitted,
    next_recovery,
)
from mcts.finalists import finalists
from mcts.result import SearchResult, TargetResult
from mcts.settings import SearchSettings
from mcts.targets import SearchTarget
from pruning.anatomy.architecture import DENSE
from pruning.atomic_file import beside
from pruning.data.conversations import Conversation, calibration_id
from pruning.errors import InputError
from pruning.measuring.metrics import Metrics
from pruning.planning.axis_spaces import SPACES_OF_UNITS
from pruning.planning.plan import distillation_step
from pruning.planning.ranking import Ranking
from pruning.planning.space import Choice
from service.finished_searches import AFTER_RECOVERY
from storage.contract import Repository
from storage.records import ModelRecord, Sample, SearchRecord
from values.typical_kl import scored_alike

if TYPE_CHECKING:
    from recovery.in_memory import Recoveries
    from recovery.recipe import Recipe
    from recovery.recover import Data, Ears
    from recovery.scores import AnswerScores

SOURCE = "after-recovery"
"""`source` of the samples."""

DEFAULT_FINALISTS = 8

OnRecovery = Callable[[int, int, str], None]
"""Told before each recovery: how many are done, of how many finalists, and the target."""


@dataclass(frozen=True)
class AfterRecovery:
    """What was found.

    Attributes:
        dense: the dense model's metrics, by part.
        parts: ids of the parts, and their names.
        train: id of the conversations that were trained on.
        values: what is said of the value model of each recipe.
        seconds: that recoveries took, those that were stored before included.
    """

    targets: list[RecoveredTarget]
    dense: dict[str, Metrics]
    parts: dict[str, tuple[str, str]]
    train: str
    values: list[Mapping[str, Any]]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "seconds": round(self.seconds, 1),
            "dense": {part: metrics.to_dict() for part, metrics in self.dense.items()},
            "targets": [target.document() for target in self.targets],
            "values": [dict(values) for values in self.values],
        }


def read_recipe(text: str) -> "Recipe":
    """The recipe that `text` says: a JSON document, or the file of one. It has a fixed length.

    Raises InputError for anything else, a recipe that breaks a rule, or one of minutes.
    """
    from recovery.recipe import Recipe

    example = """For instance '{"mode": "lora", "steps": 50}'"""
    try:
        document = json.loads(text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        rule = "a recipe is a JSON document, or a file that holds one"
        raise InputError(rule, values=f"{text[:80]!r}: {error}", remedy=example) from error
    if not isinstance(document, dict):
        raise InputError("a recipe is a JSON object", values=text[:80], remedy=example)
    recipe = Recipe.of(**document)
    if recipe.minutes is not None or (recipe.steps is None and recipe.epochs is None):
        raise InputError(
            "finalists are compared after equal trainings, of a number of steps or epochs",
            values="no number" if recipe.minutes is None else f"minutes {recipe.minutes:g}",
            remedy="Say steps or epochs in the recipe; --budget is for all recoveries together",
        )
    return recipe


def check_recoverable(model: ModelRecord, settings: SearchSettings, recipe: "Recipe") -> None:
    """Check, before anything is searched, that what will be found can be recovered.

    Raises InputError where it cannot, and what `recovery.checks.completed_for` raises.
    """
    from lop.workflows.recovering import check_launched_alone
    from recovery.checks import completed_for

    check_launched_alone("lop search --after-recovery")
    if settings.axes not in SPACES_OF_UNITS:
        raise InputError(
            "weights that are trained must be plain numbers",
            values=f"space '{settings.axes}'",
            remedy="Search another space, recover, then quantise or sparsify",
        )
    if model.reconstructed_on is not None:
        raise InputError(
            "plans for after recovery are of models that are cut and then trained",
            values=f"model {model.id!r} was registered with --reconstruct",
            remedy="Register the checkpoint without it, under another id",
        )
    if settings.latency is not None:
        raise InputError(
            "finalists of sparsities are recovered, not those of a latency",
            values=f"latency on device {settings.latency.device!r}",
            remedy="Search for it without --after-recovery, and for the sparsities with it",
        )
    completed_for(recipe, Path(model.path))


def recover_finalists(
    repository: Repository,
    model_id: str,
    conversations: Sequence[Conversation],
    settings: SearchSettings,
    data: "Data",
    recipe: "Recipe",
    *,
    minutes: float,
    names: Mapping[str, str],
    count: int = DEFAULT_FINALISTS,
    ears: "Ears | None" = None,
    on_recovery: OnRecovery = lambda *_: None,
) -> AfterRecovery:
    """Recover finalists of the search by `settings` on `conversations`, which has been run, within `minutes`.

    Args:
        data: what is trained on, what decides, and what only reports.
        recipe: of a number of steps or epochs.
        names: of the parts of `data`, as they are recorded.
        count: finalists of a target, at most.

    Raises:
        FingerprintMismatchError: the checkpoint changed since it was registered.
        InputError: nothing that was scored meets a target, or the recipe does not fit the model.
        CheckpointError, DatasetError, MissingExtraError: as `recovery.in_memory.Recoveries`.
    """
    from recovery.judging import rough_length

    model = repository.get_model(model_id)
    given = {SELECTION: data.selection, VALIDATION: data.validation}
    parts = {
        part: (record_calibration(repository, found, names[part]).id, names[part])
        for part, found in given.items()
        if found
    }
    ordered = sorted(data.train, key=rough_length)  # as `lop recover` names what it trains on
    settled = {"train": calibration_id(ordered), "selection": parts[SELECTION][0]}
    scored = _scored(repository, model, calibration_id(conversations), settings)
    targets = [
        _target(model, settings, target, scored, recipe, settled, count)
        for target in settings.resolve_targets(model.anatomy)
    ]
    dense = _read_stored(repository, model, targets, parts)
    answers = sum(len(conversation.turns) for conversation in data.selection)
    total = sum(len(x.finalists) for x in targets)
    with ExitStack() as stack:
        recoveries: Recoveries | None = None
        while found := next_recovery(targets, model.anatomy, seconds=minutes * 60, num_answers=answers):
            if recoveries is None:
                recoveries = stack.enter_context(_opened(repository, model, data, recipe, parts, ears))
                dense = {part: metrics_of(scores) for part, scores in recoveries.dense_scores.items()}
            target, finalist = found
            on_recovery(sum(len(x.recovered) for x in targets), total, target.target.label)
            recovered = recoveries(finalist.architecture, target.recipe)
            finalist.seconds = recovered.seconds
            finalist.after = {part: metrics_of(scores) for part, scores in recovered.scores.items()}
            _store(repository, model, target, finalist, dense, parts)
    models = [document_of(values) for _, values in fitted(targets, model.anatomy, num_answers=answers)]
    spent = sum(finalist.seconds for x in targets for finalist in x.recovered)
    return AfterRecovery(targets, dense, parts, settled["train"], models, spent)


def record_after_recovery(
    repository: Repository, model_id: str, settings: SearchSettings, recipe: "Recipe", result: AfterRecovery
) -> SearchRecord | None:
    """Keep what is best after recovery among the finished searches, from which plans for after recovery are answered.

    None, and nothing is kept, if nothing was recovered.
    """
    chosen = [(x, x.finalists[x.best]) for x in result.targets if x.best is not None]
    if not chosen:
        return None
    space = settings.space(repository.get_model(model_id).anatomy)
    found = SearchResult(
        tuple(
            TargetResult(
                label=x.target.label,
                sparsity=x.target.sparsity,
                budget=x.target.budget,
                choice=best.choice,
                widths=space.units_of(best.choice),
                metrics=best.after[SELECTION],
                evaluations=len(x.recovered),
                curve=(),
            )
            for x, best in chosen
        ),
        scan_evaluations=0,
    )
    document: dict[str, Any] = {
        "search": found.to_dict(),
        "calibration_id": result.parts[SELECTION][0],
        "space": space.document(),
        "steps": [x.step.model_dump(mode="json") for x, _ in chosen],
        "dense": result.dense[SELECTION].to_dict(),
        "candidates": [x.document() for x, _ in chosen],
    }
    validation = None
    if VALIDATION in result.parts:
        calibration, name = result.parts[VALIDATION]
        validation = {
            "data": name,
            "id": calibration,
            "metrics": [best.after[VALIDATION].to_dict() for _, best in chosen],
            "dense": result.dense[VALIDATION].to_dict(),
        }
    asked = {"search": settings.to_dict(), "recipe": recipe.document(), "train": result.train}
    return repository.record_search(
        model_id, {AFTER_RECOVERY: asked}, {AFTER_RECOVERY: document}, validation=validation
    )


def metrics_of(scores: "AnswerScores") -> Metrics:
    """As samples have them."""
    found = scores.document()
    return Metrics(
        kl=found["kl"],
        nll=found["nll"],
        accuracy=found["accuracy"],
        num_tokens=int(scores.tokens.sum()),
        num_answers=len(scores.tokens),
        agreement=found["agreement"],
    )


def _scored(
    repository: Repository, model: ModelRecord, calibration: str, settings: SearchSettings
) -> dict[Choice, Metrics]:
    """All configurations of the search's space that were scored before any recovery, whichever search did."""
    space = settings.space(model.anatomy)
    samples = scored_alike(
        repository.list_samples(model.id, ranking_sha256=model.ranking_sha256, calibration_id=calibration)
    )
    choices = ((space.choice_of(sample.architecture), sample.metrics) for sample in samples)
    return {choice: metrics for choice, metrics in choices if choice is not None}


def _target(
    model: ModelRecord,
    settings: SearchSettings,
    target: SearchTarget,
    scored: Mapping[Choice, Metrics],
    recipe: "Recipe",
    settled: Mapping[str, str],
    count: int,
) -> RecoveredTarget:
    """With its finalists."""
    from recovery.checks import completed_for

    space = settings.space(model.anatomy)
    chosen = finalists(scored, settings.limits(model.anatomy, target), count)
    if not chosen:
        raise InputError(
            "finalists are configurations that were scored and use up the target",
            values=f"none is for {target.label}",
            remedy="Search more evaluations",
        )
    architectures = [space.architecture(choice) for choice in chosen]
    completed = completed_for(recipe, Path(model.path))
    step = distillation_step({**settled, "recipe": completed.document()})
    found = [Finalist(c, a, scored[c]) for c, a in zip(chosen, architectures, strict=True)]
    return RecoveredTarget(target, completed, step, found)


def _read_stored(
    repository: Repository,
    model: ModelRecord,
    targets: Sequence[RecoveredTarget],
    parts: Mapping[str, tuple[str, str]],
) -> dict[str, Metrics]:
    """Put what is stored into the finalists that all parts are known of; the dense model's metrics, where they are."""
    dense: dict[str, Metrics] = {}
    for target in targets:
        samples = {
            part: {
                sample.architecture: sample
                for sample in repository.list_samples(
                    model.id,
                    ranking_sha256=model.ranking_sha256,
                    calibration_id=calibration,
                    protocol=target.protocol,
                )
            }
            for part, (calibration, _) in parts.items()
        }
        dense |= {part: found[DENSE].metrics for part, found in samples.items() if DENSE in found}
        for finalist in target.finalists:
            known = {part: of[finalist.architecture] for part, of in samples.items() if finalist.architecture in of}
            if len(known) == len(parts):
                finalist.after = {part: sample.metrics for part, sample in known.items()}
                finalist.seconds = known[SELECTION].seconds
    return dense


def _store(
    repository: Repository,
    model: ModelRecord,
    target: RecoveredTarget,
    finalist: Finalist,
    dense: Mapping[str, Metrics],
    parts: Mapping[str, tuple[str, str]],
) -> None:
    """The samples of a finalist, with those of the dense model, of which nothing is cut and so nothing trained."""
    key = model.id, model.ranking_sha256
    samples = []
    for part, (calibration, _) in parts.items():
        for architecture, metrics, seconds in (
            (DENSE, dense[part], 0.0),
            (finalist.architecture, finalist.after[part], finalist.seconds),
        ):
            samples.append(Sample(*key, calibration, architecture, metrics, seconds, SOURCE, target.protocol))
    repository.add_samples(samples)


@contextmanager
def _opened(
    repository: Repository,
    model: ModelRecord,
    data: "Data",
    recipe: "Recipe",
    parts: Mapping[str, tuple[str, str]],
    ears: "Ears | None",
) -> "Iterator[Recoveries]":
    """By one process at a time. What a killed one leaves among the temporary files is gone on with."""
    from lop.workflows.compute import compute_device
    from lop.workflows.engines import check_weights
    from pruning.cutting.streaming.lock import locked_file
    from pruning.forward.spill_folder import spill_folder
    from recovery.in_memory import Recoveries

    check_weights(model)
    ranking = Ranking.from_bytes(repository.get_artifact(model.ranking_sha256).content)
    device = compute_device()
    named = [model.weights_sha256, model.ranking_sha256, calibration_id(data.train), recipe.key, device.type]
    named += [calibration for calibration, _ in parts.values()]
    digest = hashlib.sha256(json.dumps(named).encode()).hexdigest()
    folder = spill_folder() / f"lop-{os.getuid()}-after-recovery-{digest[:24]}"
    lock = beside(folder, ".lock")
    with locked_file(lock, folder):
        try:
            with Recoveries(Path(model.path), ranking, data, recipe, folder, device=device, ears=ears) as recoveries:
                yield recoveries
        finally:
            lock.unlink(missing_ok=True)
