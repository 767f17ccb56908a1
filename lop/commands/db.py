"""`lop db`: the database's schema, waiting for it, copies of it, whether it is whole, old plans, jobs and data sets."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from lop.commands.options import DEFAULT_DATABASE, DEFAULT_STORE, Database, Json, Store
from lop.commands.time_spans import time_span
from lop.console.console import print_json, print_line, print_table

app = typer.Typer(help="Create, upgrade, copy, check or tidy the database.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Create, upgrade, copy, check or tidy the database."""


@app.command("upgrade")
def upgrade_command(database: Database = DEFAULT_DATABASE) -> None:
    """Bring the schema to the revision that this version reads and writes; a new database is created."""
    from storage.database import upgrade

    upgrade(database)
    print_line("database is at the newest revision")


@app.command("wait")
def wait_command(
    minutes: Annotated[float, typer.Option(min=0, help="Fail if it is not ready after so long.")] = 10,
    database: Database = DEFAULT_DATABASE,
) -> None:
    """Wait until the database answers and its schema is of this version, as `lop db upgrade` makes it.

    For what is started beside the upgrade, such as the pods of deploy/kubernetes. Says what it waits for, and stores
    nothing. A newer schema is not waited for: it is never brought down.
    """
    from service.logs import configure_logging
    from service.settings import load_settings
    from service.waiting import wait_for_schema
    from storage.maintenance import check_schema

    settings = load_settings(database_url=database)
    configure_logging(settings.log_level, settings.log_format)
    wait_for_schema(lambda: check_schema(database), 60 * minutes)
    print_line("database is at the revision of this version")


@app.command("backup")
def backup_command(
    file: Annotated[Path, typer.Argument(help="New file: a SQLite database, whatever it is a copy of.")],
    database: Database = DEFAULT_DATABASE,
    json: Json = False,
) -> None:
    """Copy the whole database, as it is at one moment, while servers and workers go on.

    The content of data sets is in the data store: copy that folder, too.
    """
    from storage.backup import backup

    _show(f"copied into {file}", backup(database, file), json=json)


@app.command("restore")
def restore_command(
    file: Annotated[Path, typer.Argument(help="What `lop db backup` wrote.")],
    database: Database = DEFAULT_DATABASE,
    json: Json = False,
) -> None:
    """Bring a backup into a database that has no rows, SQLite or PostgreSQL: all of it or nothing."""
    from storage.backup import restore

    _show(f"restored from {file}", restore(file, database), json=json)


@app.command("check")
def check_command(
    store: Annotated[
        str | None,
        typer.Option(envvar="LOP_DATA_STORE", help="Look for the content of data sets there, too.", show_envvar=True),
    ] = None,
    database: Database = DEFAULT_DATABASE,
    json: Json = False,
) -> None:
    """Look through all that is stored: artifacts against their sha256, plans, events of jobs. Exits with 1 if something
    is wrong."""
    from storage.data_store import open_store
    from storage.integrity import check_database

    report = check_database(database, None if store is None else open_store(store))
    if json:
        findings = [{"what": x.what, "key": x.key, "wrong": x.wrong} for x in report.findings]
        print_json({"rows": report.rows, "findings": findings})
    elif report.findings:
        rows = [[x.what, x.key, x.wrong] for x in report.findings]
        print_table("what is wrong", ["what", "key", "wrong"], rows)
    else:
        print_line(f"all is well in {sum(report.rows.values()):,} rows")
    if report.findings:
        raise typer.Exit(1)


@app.command("remove-plans")
def remove_plans_command(
    older_than: Annotated[str, typer.Option(help="Plans made longer ago than this go: 12h, 90d or 52w.")],
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; without this, only their number is shown.")] = False,
    database: Database = DEFAULT_DATABASE,
    json: Json = False,
) -> None:
    """Show how many plans are older than that, and with --yes remove them, while servers and workers go on. Every new
    request adds one, every position of the explorer's sliders too, and nothing else removes any.

    Who asks for the same again gets the same plan, made anew, as long as nothing was searched or trained since and
    the version is the same; until then its link and id are unknown. Plans stay that a job names which waits, runs or
    may be retried. Files of plans are not touched.
    """
    from storage.old_plans import old_plans, remove_old_plans

    before = datetime.now(UTC) - time_span(older_than)
    found = (remove_old_plans if yes else old_plans)(database, before)
    if json:
        print_json({"before": before.isoformat(), "removed": yes, "by_model": found.by_model, "needed": found.needed})
        return
    what = f"{found.count:,} plans of before {before:%Y-%m-%d %H:%M} UTC"
    print_line(f"removed {what}" if yes else f"{what} would go. Nothing was removed: that takes --yes")
    if found.needed:
        print_line(f"{found.needed:,} more stay: jobs that wait, run or may be retried need them")


@app.command("remove-jobs")
def remove_jobs_command(
    older_than: Annotated[str, typer.Option(help="Jobs that ended longer ago than this go: 12h, 90d or 52w.")],
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; without this, only their number is shown.")] = False,
    database: Database = DEFAULT_DATABASE,
    json: Json = False,
) -> None:
    """Show how many jobs ended longer ago than that, and with --yes remove them with their progress and logs, while
    servers and workers go on. Nothing else removes any.

    What they made stays: samples, predictors, checkpoints. Those that failed, were cancelled or parked can then not be
    retried, and plans that stayed for that may go (`lop db remove-plans`).
    """
    from storage.old_jobs import old_jobs, remove_old_jobs

    before = datetime.now(UTC) - time_span(older_than)
    found = (remove_old_jobs if yes else old_jobs)(database, before)
    if json:
        print_json({"before": before.isoformat(), "removed": yes, "by_status": found})
        return
    by_status = ", ".join(f"{count:,} {status}" for status, count in found.items())
    what = f"{sum(found.values()):,} jobs that ended before {before:%Y-%m-%d %H:%M} UTC"
    what += f" ({by_status})" if found else ""
    print_line(f"removed {what}" if yes else f"{what} would go. Nothing was removed: that takes --yes")


@app.command("remove-datasets")
def remove_datasets_command(
    older_than: Annotated[str, typer.Option(help="Data sets last handed in longer ago than this go: 12h, 90d or 52w.")],
    store: Store = DEFAULT_STORE,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; without this, only their number is shown.")] = False,
    absent: Annotated[bool, typer.Option("--absent", help="With --yes, also those whose content is lost.")] = False,
    database: Database = DEFAULT_DATABASE,
    json: Json = False,
) -> None:
    """Show how many data sets were last handed in longer ago than that, and with --yes remove them with their content,
    while servers and workers go on. Nothing else removes any.

    Those stay that a job names which waits, runs or may be retried, and what was made with a data set. Who hands the
    same in again gets the same id.
    """
    from storage.data_store import open_store
    from storage.old_datasets import old_datasets, remove_old_datasets

    before = datetime.now(UTC) - time_span(older_than)
    content = open_store(store)
    if yes:
        found = remove_old_datasets(database, content, before, absent=absent)
    else:
        found = old_datasets(database, content, before)
    if json:
        print_json({"before": before.isoformat(), "removed": yes, **asdict(found)})
        return
    what = f"{found.count:,} data sets of before {before:%Y-%m-%d %H:%M} UTC, {found.size_bytes / 1e9:.2f} GB"
    print_line(f"removed {what}" if yes else f"{what}, would go. Nothing was removed: that takes --yes")
    if found.needed:
        print_line(f"{found.needed:,} more stay: jobs that wait, run or may be retried need them")
    if found.absent:
        print_line(
            f"{found.absent:,} more stay: their content is not in {store}. Is it the data store that servers use? If "
            "the content is lost, --yes --absent removes their records"
        )


def _show(done: str, rows: dict[str, int], *, json: bool) -> None:
    if json:
        print_json({"rows": rows})
    else:
        print_line(f"{done}: {sum(rows.values()):,} rows")
