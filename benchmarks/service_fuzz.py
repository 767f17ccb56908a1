"""Schemathesis over the whole OpenAPI document of `lop serve`, with stateful links, by everybody who may ask and not.

Rounds: in each, schemathesis generates requests by its fuzzing and its stateful phase from one seed, and in the first
one by its examples and its coverage, which are the same for every seed, against a server that goes on with what earlier
rounds left in its database. Most names in valid requests are known ones (`service_fuzz_known`). No worker
runs: jobs wait, and those whose events are watched are cancelled first. Who asks:

- `open`: whoever is on the machine of a server without keys;
- `run`, `plan`, `read`: a key of that scope;
- `nobody`: no key, an expired one, a revoked one, a wrong one, two in one header, and what is no key, in turn.

What is counted: answers of 500 and above; answers that the document does not describe (status, media type, headers,
schema, methods, what is accepted against it); and answers to whom they should not be: anything but 401 to nobody, and
anything but 403 to a key that may not do it. Who may do what is written down here a second time: the server's own
function could not find itself wrong.
"""

import itertools
import random
import zlib
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from benchmarks.service_fuzz_known import Ids, add_jobs_and_predictors, add_over_http, archives, name_known
from benchmarks.service_processes import CODE, Server, database, running
from benchmarks.service_subject import add_made_up_model
from benchmarks.steps import Steps, say
from service.keys import new_key
from service.routes.datasets import ARCHIVE_TYPES
from storage.contract import Repository
from storage.records import KeyScope
from storage.sql_repository import open_repository

NUM_REQUESTS = 100_000
DATABASES = ("sqlite", "postgresql")
SHARES = {"open": 0.3, "run": 0.4, "plan": 0.1, "read": 0.1, "nobody": 0.1}
"""Of the requests to each database, by who asks."""
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "positive_data_acceptance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
    "ensure_resource_availability",
)
"""Not `use_after_free`: the one DELETE there is, of a job, cancels it, and what was cancelled can still be read. Not
`ignored_auth` and `object_level_authorization`: `_expected` holds every answer against who asks."""
_ACCEPTANCE = "positive_data_acceptance"
"""Of what is not a POST: rules across fields, what an archive holds and that 1.0 is no integer are said by no schema,
so that many bodies that are valid by theirs are refused (377 of 1,097 in a trial)."""
EXAMPLES = 60
"""Of each operation in the fuzzing phase of a round."""
TIMEOUT_SECONDS = 60.0
_EVENTS = "/v1/jobs/{job_id}/events"
_OPEN = ("/healthz", "/readyz", "/docs", "/openapi.json")
"""What anybody may ask for."""
_MAY = {"read": {"read"}, "plan": {"read", "plan"}, "run": {"read", "plan", "run"}}
"""What a key may do, by its scope."""
_STATEFUL = "stateful"
_SHOWN = 20

Row = dict[str, Any]


@dataclass
class Found:
    """What rounds came to."""

    requests: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    phases: Counter[str] = field(default_factory=Counter)
    server_errors: int = 0
    undocumented: int = 0
    auth_bypasses: int = 0
    engine_errors: int = 0
    examples: list[str] = field(default_factory=list)

    def note(self, what: str) -> None:
        """Keep the first few."""
        if len(self.examples) < _SHOWN and what not in self.examples:
            self.examples.append(what)

    def document(self) -> Row:
        return {
            "requests": self.requests,
            "statuses": dict(sorted(self.statuses.items())),
            "phases": dict(sorted(self.phases.items())),
            "server_errors": self.server_errors,
            "undocumented": self.undocumented,
            "auth_bypasses": self.auth_bypasses,
            "engine_errors": self.engine_errors,
            "examples": self.examples,
        }


def fuzz(folder: Path, steps: Steps, *, num_requests: int = NUM_REQUESTS) -> tuple[Row, list[Row]]:
    """Summary and rows; each cell of database and asker is a step."""
    rows = []
    for kind, asker in itertools.product(DATABASES, SHARES):
        wanted = round(num_requests * SHARES[asker] / len(DATABASES))
        run = partial(_cell, folder / f"{kind}-{asker}", kind, asker, wanted)
        step = steps.call(f"fuzz {kind} {asker}", [str(wanted)], run, modules=(__name__, *CODE))
        rows.append({"part": "fuzz", "database": kind, "asker": asker, **step.document})
    names = ("requests", "server_errors", "undocumented", "auth_bypasses")
    total = {name: sum(row[name] for row in rows) for name in names}
    stateful = sum(row["phases"].get(_STATEFUL, 0) for row in rows)
    failed = sum(row["engine_errors"] for row in rows)
    return {
        "fuzz_requests": total.pop("requests"),
        "fuzz_stateful_requests": stateful,
        **total,
        "fuzz_engine_errors": failed,
    }, rows


def _cell(folder: Path, kind: str, asker: str, wanted: int) -> Row:
    folder.mkdir(parents=True, exist_ok=True)
    found = Found()
    with database(kind, folder) as (url, _):
        with open_repository(url) as repository:
            add_made_up_model(repository)
            keys = [] if asker == "open" else _keys(repository)
            mine = _headers(repository, asker, keys)
            ids = add_jobs_and_predictors(repository)
        server = Server(url, folder, settings={"LOP_KEY_LIMIT": "1000000/second"})
        with running(server):
            admin = {"Authorization": f"Bearer {keys[0]}"} if keys else {}
            with httpx.Client(base_url=server.url, headers=admin, timeout=TIMEOUT_SECONDS) as client:
                ids |= add_over_http(client)
            first = zlib.crc32(f"{kind} {asker}".encode())  # else every cell would send the same
            for number in itertools.count():
                if found.requests >= wanted:
                    break
                before = found.requests
                _round(server.url, asker, mine, first + number, wanted, found, ids, is_first=number == 0)
                if found.requests == before:
                    raise RuntimeError(f"schemathesis asks for nothing: {found.examples}")
                say(f"fuzz {kind} {asker}: {found.requests} of {wanted}")
            if not server.is_ready:
                found.server_errors += 1
                found.note("the server is not ready any more")
    return found.document()


def _keys(repository: Repository) -> list[str]:
    """One key at least, by which the server asks for keys of everybody."""
    record, key = new_key("somebody", KeyScope.ADMIN)
    repository.add_key(record)
    return [key]


def _headers(repository: Repository, asker: str, keys: list[str]) -> list[list[tuple[str, str]]]:
    """Headers of requests, which take turns."""
    if asker == "open":
        return [[]]
    if asker != "nobody":
        record, key = new_key("fuzz", KeyScope(asker))
        repository.add_key(record)
        return [[("Authorization", f"Bearer {key}")]]
    old, expired = new_key("old", KeyScope.ADMIN, lifetime=timedelta(microseconds=1))
    repository.add_key(old)
    gone, revoked = new_key("gone", KeyScope.ADMIN)
    repository.add_key(gone)
    repository.revoke_key(gone.id)
    secret = keys[0]
    twice = f"Bearer {secret}, Bearer {secret}"  # what a proxy may make of two headers (RFC 9110, section 5.3)
    bad = [f"Bearer {expired}", f"Bearer {revoked}", f"Bearer {secret[:-1]}x", twice, f"Basic {secret}", "Bearer"]
    bad.append(secret)
    return [[], *([("Authorization", text)] for text in bad)]


def _round(
    url: str,
    asker: str,
    mine: list[list[tuple[str, str]]],
    seed: int,
    wanted: int,
    found: Found,
    ids: Ids,
    *,
    is_first: bool,
) -> None:
    import schemathesis
    from schemathesis.config import ProjectConfig, ProjectsConfig, SchemathesisConfig
    from schemathesis.engine import events, from_schema

    project = ProjectConfig(
        base_url=url, request_timeout=TIMEOUT_SECONDS, max_stream_events=3, continue_on_failure=True, headers={}
    )
    project.generation.max_examples = EXAMPLES
    project.generation.no_shrink = True
    project.generation.database = "none"
    # Every round would send the same of these, whatever its seed.
    project.phases.examples.enabled = project.phases.coverage.enabled = is_first
    project.checks.update(included_check_names=list(CHECKS))
    # A plan that schema 1 cannot say is refused to who does not ask for schema 2.
    acceptance = project.checks.positive_data_acceptance
    acceptance.expected_statuses = [*acceptance.expected_statuses, "406"]
    config = SchemathesisConfig(seed=seed, projects=ProjectsConfig(default=project))
    document = httpx.get(f"{url}/openapi.json", timeout=TIMEOUT_SECONDS).json()
    schema = schemathesis.openapi.from_dict(document, config=config)
    turns = itertools.cycle(mine)
    rng = random.Random(seed)
    (job,) = ids["job_id"]
    admin = httpx.Client(base_url=url, headers=dict(mine[0]), timeout=TIMEOUT_SECONDS)

    schemathesis.hooks.unregister_all()
    for kind in ARCHIVE_TYPES:
        schemathesis.openapi.media_type(kind, archives())

    @schemathesis.hook  # type: ignore[untyped-decorator, unused-ignore]
    def before_call(context: Any, case: Any, kwargs: Any) -> None:  # noqa: ARG001 (schemathesis goes by the names)
        name_known(case, ids, rng)
        case.headers = {**(case.headers or {}), **dict(next(turns))}
        if case.operation.path == _EVENTS and asker in ("open", "run") and "job_id" in (case.path_parameters or {}):
            # A stream lasts as long as its job, and no worker ends it here.
            admin.delete(f"/v1/jobs/{httpx.URL(path='/' + str(case.path_parameters['job_id'])).raw_path.decode()[1:]}")

    with admin:
        for event in from_schema(schema).execute():
            if isinstance(event, events.ScenarioFinished | events.FuzzScenarioFinished):
                before = found.requests
                _count(event.recorder, asker, found, job)
                phase = getattr(event, "phase", None)
                found.phases["fuzzing" if phase is None else phase.value] += found.requests - before
            elif isinstance(event, events.NonFatalError):
                found.engine_errors += 1
                found.note(f"schemathesis: {event.label}: {event.value!r}"[:1500])
            elif isinstance(event, events.FatalError):
                found.engine_errors += 1
                found.note(f"schemathesis: {event.exception!r}"[:1500])
            if found.requests >= wanted * 1.2:
                break


def _count(recorder: Any, asker: str, found: Found, job: str) -> None:
    for case_id, interaction in recorder.interactions.items():
        found.requests += 1
        response = interaction.response
        if response is None:
            found.server_errors += 1
            found.note(f"no answer: {interaction.request.method} {interaction.request.uri}"[:500])
            continue
        found.statuses[str(response.status_code)] += 1
        asked = f"{interaction.request.method} {interaction.request.uri} {_body(interaction)}"[:700]
        if response.status_code >= 500:
            found.server_errors += 1
            found.note(f"{response.status_code}: {asked}: {response.content[:300]!r}")
        expected = _expected(asker, interaction.request.method, httpx.URL(interaction.request.uri).path, job)
        if expected is not None and response.status_code != expected:
            found.auth_bypasses += 1
            found.note(f"{response.status_code} instead of {expected}: {asked}")
        for check in recorder.checks.get(case_id, ()):
            if check.name == "not_a_server_error" or (
                check.name == _ACCEPTANCE and interaction.request.method == "POST"
            ):
                continue
            if check.failure_info is not None:
                found.undocumented += 1
                found.note(f"{check.name}: {asked}: {response.status_code} {check.failure_info.failure.message}"[:1500])


def _body(interaction: Any) -> str:
    body = interaction.request.body
    return "" if not body else repr(body)[:300]


def _expected(asker: str, method: str, path: str, job: str) -> int | None:
    """The status of a request that is not allowed; None where it is. `job` is another asker's."""
    if asker == "open" or path in _OPEN:
        return None
    if asker == "nobody":
        return 401
    if (method, path) in (("DELETE", f"/v1/jobs/{job}"), ("POST", f"/v1/jobs/{job}/retry")):
        return 403
    if method in ("GET", "HEAD", "OPTIONS"):
        needed = "read"
    else:
        needed = "plan" if (method, path) == ("POST", "/v1/plans") else "run"
    return None if needed in _MAY[asker] else 403
