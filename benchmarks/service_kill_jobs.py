"""The jobs that processes are killed under, and what has come of them: what an undisturbed run is compared by."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from service.jobs.settings import SearchJob
from storage.contract import Repository
from storage.records import JobRecord, JobStatus
from tests.tiny_models.checkpoints import save_tiny_checkpoint, write_conversations

MODEL, OTHER, LEARNT = "tiny", "other", "learnt"
FOLDER = "model"
SEARCHES, MEASURED, REGISTERED = 14, ("gradients", "zeroth-order"), 1
PLAN_SPARSITIES = tuple(round(0.05 + 0.01 * number, 2) for number in range(60))
APPLIED, RECOVERED = PLAN_SPARSITIES[:6], PLAN_SPARSITIES[-1]
"""Plans that checkpoints are cut by, and the one after which what is left is trained."""
SELECTED = 24
"""Conversations to decide by: of few, what a short training gains is within their noise, and is thrown away."""
GRID = {"num_levels": 3, "round_to": 16}
LEARNING = {"model": LEARNT, "sparsities": [0.1, 0.2, 0.3, 0.4, 0.5], "evaluations": 60, **GRID}
"""Seven seconds of training, on one core: of a coarse space, which takes so many targets to have enough samples."""
RECIPE = {"mode": "full", "steps": 4, "evaluations": 2, "learning_rate": 3e-5, "losses": {"kd-logits": 1.0}}
"""Ends by its steps, not by the clock."""

Row = dict[str, Any]


def write_files(folder: Path) -> tuple[Path, Path]:
    """The root with the checkpoint, and the conversations with their pictures."""
    root, data = folder / "models", folder / "data"
    if not (root / FOLDER).is_dir():
        save_tiny_checkpoint(root / FOLDER)
        write_conversations(data, 6)
    return root, data


def write_selection(folder: Path) -> Path:
    """The conversations by which a recovery decides: others than it is trained on."""
    selection = folder / "selection"
    if not selection.is_dir():
        write_conversations(selection, SELECTED, seed=1)
    return selection


def first_jobs(dataset: str) -> list[list[Row]]:
    """Without them nothing else can be asked for. In chains: a job is asked for when the one before it has ended.

    A predictor learns from all samples that its model has. To end the same whatever else has run by then, it is trained
    for a model of its own, when the only search of that is done.
    """
    search = {"kind": "search", "dataset": dataset, "train": False, **LEARNING}
    return [[_registered(MODEL, dataset)], [_registered(LEARNT, dataset), search]]


def _registered(model: str, dataset: str) -> Row:
    return {"kind": "register", "model": model, "folder": FOLDER, "dataset": dataset}


def other_jobs(dataset: str, selection: str, plans: dict[float, str]) -> list[Row]:
    """Of every kind; `plans` are by their sparsities."""
    searches: list[Row] = [
        {
            "kind": "search",
            "model": MODEL,
            "dataset": dataset,
            "sparsities": [round(0.2 + 0.02 * seed, 2), round(0.5 + 0.02 * seed, 2)],  # else all find the same samples
            "evaluations": 24,
            "num_levels": 6,
            "round_to": 8,
            "seed": seed,
            "train": False,
        }
        for seed in range(SEARCHES)
    ]
    recover = {"kind": "recover", "plan": plans[RECOVERED], "dataset": dataset, "selection": selection}
    found: list[Row] = [{"kind": "apply", "plan": plans[sparsity]} for sparsity in APPLIED]
    found += [{"kind": "measure", "model": MODEL, "dataset": dataset, "statistics": [kind]} for kind in MEASURED]
    found += [{"kind": "train", "model": LEARNT, **GRID}, {**recover, "recipe": RECIPE}]
    found += [_registered(f"{OTHER}-{number}", dataset) for number in range(REGISTERED)]
    return [*found, *searches]


def outcome(repository: Repository, output: Path) -> Row:
    """What jobs and searches have left, without the names that differ from run to run."""
    jobs = repository.list_jobs()
    found: Row = {"jobs": {_asked(job): _result(job) for job in jobs}}
    found["samples"] = sorted(
        f"{model} {sample.architecture} {sample.metrics.kl!r} {sample.metrics.nll!r} {sample.metrics.accuracy!r}"
        for model in (MODEL, LEARNT)
        for sample in repository.list_samples(model)
    )
    found["searches"] = sum(len(repository.list_searches(model)) for model in (MODEL, LEARNT))
    found["predictors"] = {one.id: one.weights_sha256 for one in repository.list_predictors()}
    found["models"] = {model.id: f"{model.weights_sha256} {model.ranking_sha256}" for model in repository.list_models()}
    found["files"] = {
        f"{path.parent.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(output.glob("[!.]*/*.safetensors"))
    }
    return found


def differences(found: Row, undisturbed: Row) -> dict[str, list[str]]:
    """What is `lost`, `doubled` or `different` against the undisturbed run, in words."""
    samples: Counter[str] = Counter(found["samples"])
    expected: Counter[str] = Counter(undisturbed["samples"])
    lost = [f"sample {sample}" for sample in expected - samples]
    doubled = [f"sample {sample}" for sample in samples - expected]
    if found["searches"] < undisturbed["searches"]:
        lost.append(f"{found['searches']} searches instead of {undisturbed['searches']}")
    if found["searches"] > undisturbed["searches"]:
        doubled.append(f"{found['searches']} searches instead of {undisturbed['searches']}")
    different = []
    for part in ("jobs", "predictors", "models", "files"):
        for name, value in undisturbed[part].items():
            if name not in found[part]:
                lost.append(f"{part} {name}")
            elif found[part][name] != value:
                different.append(f"{part} {name}: {found[part][name]} instead of {value}"[:600])
        doubled += [f"{part} {name}" for name in found[part].keys() - undisturbed[part].keys()]
    return {"lost": lost, "doubled": doubled, "different": different}


def ended_twice(repository: Repository, jobs: list[JobRecord]) -> list[str]:
    """Jobs that say more than once that they are done."""
    return [
        job.id
        for job in jobs
        if sum(event.document.get("status") == JobStatus.DONE.value for event in repository.list_job_events(job.id)) > 1
    ]


def interrupted_by_kind(repository: Repository, jobs: list[JobRecord]) -> dict[str, int]:
    """How often a worker claimed one of the jobs and did not end it; every kind of them has a number."""
    found = dict.fromkeys(sorted({job.kind for job in jobs}), 0)
    for job in jobs:
        statuses = Counter(event.document.get("status") for event in repository.list_job_events(job.id))
        ended = statuses[JobStatus.DONE.value] + statuses[JobStatus.FAILED.value]
        found[job.kind] += statuses[JobStatus.RUNNING.value] - ended
    return found


def _asked(job: JobRecord) -> str:
    settings = dict(job.settings)
    if job.kind == "search":
        settings = SearchJob(**settings).model_dump(mode="json")
    return json.dumps(settings, sort_keys=True)


def _result(job: JobRecord) -> Row:
    document = {name: value for name, value in (job.result or {}).items() if name != "search"}
    if "recovery" in document:  # its report tells of seconds and folders, in as many bytes as these take
        document["files"] = [file["name"] for file in document["files"]]
    return {"status": job.status.value, "error": job.error, "result": document}
