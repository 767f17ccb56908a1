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

MODEL, OTHER = "tiny", "other"
FOLDER = "model"
SEARCHES, MEASURED, APPLIED, REGISTERED = 14, ("gradients", "zeroth-order"), 3, 2
PLAN_SPARSITIES = tuple(round(0.05 + 0.01 * number, 2) for number in range(60))

Row = dict[str, Any]


def write_files(folder: Path) -> tuple[Path, Path]:
    """The root with the checkpoint, and the conversations with their pictures."""
    root, data = folder / "models", folder / "data"
    if not (root / FOLDER).is_dir():
        save_tiny_checkpoint(root / FOLDER)
        write_conversations(data, 6)
    return root, data


def first_job(dataset: str) -> Row:
    """Without it nothing else can be asked for."""
    return {"kind": "register", "model": MODEL, "folder": FOLDER, "dataset": dataset}


def other_jobs(dataset: str, plans: list[str]) -> list[Row]:
    """Of every kind that ends the same whatever ran before it: training learns from the samples that there are."""
    found: list[Row] = [
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
    found += [{"kind": "measure", "model": MODEL, "dataset": dataset, "statistics": [kind]} for kind in MEASURED]
    found += [{"kind": "apply", "plan": plan} for plan in plans[:APPLIED]]
    found += [{**first_job(dataset), "model": f"{OTHER}-{number}"} for number in range(REGISTERED)]
    return found


def outcome(repository: Repository, output: Path) -> Row:
    """What jobs and searches have left, without the names that differ from run to run."""
    jobs = repository.list_jobs()
    found: Row = {"jobs": {_asked(job): _result(job) for job in jobs}}
    found["samples"] = sorted(
        f"{sample.architecture} {sample.metrics.kl!r} {sample.metrics.nll!r} {sample.metrics.accuracy!r}"
        for sample in repository.list_samples(MODEL)
    )
    found["searches"] = len(repository.list_searches(MODEL))
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
    for part in ("jobs", "models", "files"):
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


def num_interrupted(repository: Repository, jobs: list[JobRecord]) -> int:
    """How often a worker claimed one of the jobs and did not end it."""
    statuses = Counter(event.document.get("status") for job in jobs for event in repository.list_job_events(job.id))
    return statuses[JobStatus.RUNNING.value] - statuses[JobStatus.DONE.value] - statuses[JobStatus.FAILED.value]


def _asked(job: JobRecord) -> str:
    settings = dict(job.settings)
    if job.kind == "search":
        settings = SearchJob(**settings).model_dump(mode="json")
    return json.dumps(settings, sort_keys=True)


def _result(job: JobRecord) -> Row:
    document = {name: value for name, value in (job.result or {}).items() if name != "search"}
    return {"status": job.status.value, "error": job.error, "result": document}
