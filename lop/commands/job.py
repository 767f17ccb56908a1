"""`lop job`: the jobs of a server or of a database."""

from typing import Annotated, Any

import typer

from lop.commands.options import Json, OptionalDatabase, Url
from lop.console.console import print_json, print_line, print_table
from lop.workflows.job_access import JobAccess, open_jobs

app = typer.Typer(help="See what workers do and what waits for them; cancel, or queue again.", no_args_is_help=True)

_JobId = Annotated[str, typer.Argument(metavar="ID", help="Of the job, from `lop job list`.")]
_Status = Annotated[
    str | None, typer.Option(help="Only jobs that are queued, running, done, failed, cancelled or parked.")
]


@app.command("list")
def list_jobs(
    status: _Status = None,
    kind: Annotated[
        str | None, typer.Option(help="Only of this kind: register, measure, search, train, apply, recover.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Only of this model.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The newest so many.")] = 50,
    url: Url = None,
    database: OptionalDatabase = None,
    json: Json = False,
) -> None:
    """List jobs, newest first: of a server (--url), or of a database."""
    with open_jobs(url, database) as jobs:
        found = jobs.list(status=status, kind=kind, model=model, limit=limit)
    if json:
        print_json(found)
        return
    columns = ["id", "kind", "model", "status", "progress", "asked by", "created", "error"]
    rows = [
        [
            job["id"],
            job["kind"],
            job["model"],
            _status_of(job),
            _progress_of(job) or "-",
            job["asked_by"],
            job["created_at"][:16].replace("T", " "),
            job["error"] or "-",
        ]
        for job in found
    ]
    print_table("jobs", columns, rows)


@app.command("show")
def show(job_id: _JobId, url: Url = None, database: OptionalDatabase = None, json: Json = False) -> None:
    """Show one job: how far it is, the last lines of its log, and what came of it."""
    _act("show", job_id, url, database, json)


@app.command("cancel")
def cancel(job_id: _JobId, url: Url = None, database: OptionalDatabase = None, json: Json = False) -> None:
    """Cancel a job. One that runs stops at its next step, such as an evaluation; what it stored stays."""
    _act("cancel", job_id, url, database, json)


@app.command("retry")
def retry(job_id: _JobId, url: Url = None, database: OptionalDatabase = None, json: Json = False) -> None:
    """Queue a job again that failed, was cancelled or parked. A search goes on from what it stored."""
    _act("retry", job_id, url, database, json)


def _act(name: str, job_id: str, url: str | None, database: str | None, json: bool) -> None:
    with open_jobs(url, database) as jobs:
        job = _done(jobs, name, job_id)
    if json:
        print_json(job)
        return
    print_line(f"{job['kind']} job {job['id']} of {job['model']}: {_status_of(job)}, asked by {job['asked_by']}")
    if progress := _progress_of(job):
        print_line(progress)
    if job["error"]:
        print_line(f"error: {job['error']}")
    for name_of, value in (job["result"] or {}).items():
        print_line(f"{name_of}: {value}")
    for line in job["log"]:
        print_line(f"  {line}")


def _done(jobs: JobAccess, name: str, job_id: str) -> dict[str, Any]:
    match name:
        case "cancel":
            return jobs.cancel(job_id)
        case "retry":
            return jobs.retry(job_id)
        case _:
            return jobs.get(job_id)


def _status_of(job: dict[str, Any]) -> str:
    return "cancelling" if job["is_cancelling"] else str(job["status"])


def _progress_of(job: dict[str, Any]) -> str:
    progress = job["progress"]
    if progress is None:
        return ""
    best = "" if progress["best"] is None else f", best KL {progress['best']:.4g}"
    loss = "" if progress.get("loss") is None else f", loss {progress['loss']:.3g}"
    left = (
        ""
        if progress["seconds_left"] is None or job["status"] != "running"
        else (f", about {progress['seconds_left']:.0f} s left")
    )
    return f"{progress['stage']}: {progress['done']}/{progress['total']}{best}{loss}{left}"
