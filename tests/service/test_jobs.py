"""Jobs over HTTP: what can be asked for, how it is watched, cancelled and queued again."""

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient

from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.errors import NotFoundError, StorageUnavailableError
from pruning.planning.make_plan import make_plan
from pruning.planning.plan import PlanRanking, PlanTarget
from service.jobs.settings import KINDS, read_settings
from storage.contract import Repository
from storage.records import JobProgress, JobStatus, NewJob, PlanRecord
from storage.sql_repository import SqlRepository
from tests.service.made_up import made_up_anatomy, register_model
from tests.storage.examples import dataset

DATASET = "d" * 64
HOUR = timedelta(hours=1)
SEARCH = {"kind": "search", "model": "tiny", "dataset": DATASET, "sparsities": [0.3, 0.5]}


@pytest.fixture(autouse=True)
def _data(repository: Repository) -> None:
    repository.add_dataset(dataset(DATASET))


def asked(client: TestClient, body: Any = SEARCH, **headers: str) -> dict[str, Any]:
    answer = client.post("/v1/jobs", json=body, headers=headers)
    assert answer.status_code == 201, answer.text
    document: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{document['id']}"
    return document


def events(client: TestClient, job_id: str, **headers: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Kind, id and data of every event; the stream must end."""
    answer = client.get(f"/v1/jobs/{job_id}/events", headers=headers)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in answer.text.strip().split("\n\n"):
        if not block or block.startswith(":"):
            continue
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append((fields["event"], fields["id"], json.loads(fields["data"])))
    return found


def test_a_job_is_asked_for_and_read(client: TestClient, repository: Repository) -> None:
    document = asked(client)
    assert (document["kind"], document["model"], document["status"]) == ("search", "tiny", "queued")
    assert (document["asked_by"], document["attempts"], document["log"]) == ("loopback", 0, [])
    assert document["settings"]["evaluations"] == 200
    assert document["settings"]["dataset"] == DATASET
    assert client.get(f"/v1/jobs/{document['id']}").json() == document
    claimed = repository.claim_job("w", stale_after=HOUR)
    assert claimed is not None
    repository.report_job(claimed.id, "w", progress=JobProgress(3, 40, "sparsity 0.3", 0.5, 12.0), log=["one", "two"])
    running = client.get(f"/v1/jobs/{document['id']}").json()
    assert running["progress"] == {"done": 3, "total": 40, "stage": "sparsity 0.3", "best": 0.5, "seconds_left": 12.0}
    assert (running["status"], running["log"]) == ("running", ["one", "two"])
    repository.finish_job(claimed.id, "w", result={"model": "tiny", "search": "s", "predictor": "p"})
    done = client.get(f"/v1/jobs/{document['id']}").json()
    assert (done["status"], done["result"]) == ("done", {"model": "tiny", "search": "s", "predictor": "p"})


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"kind": "search"}, 422, "model"),
        ({**SEARCH, "kind": "paint"}, 422, "kind"),
        ({**SEARCH, "kind": None}, 422, "kind"),
        ({k: v for k, v in SEARCH.items() if k != "kind"}, 422, "kind"),
        ({**SEARCH, "model": "nope"}, 404, "nope"),
        ({**SEARCH, "dataset": "e" * 64}, 404, "data set"),
        ({**SEARCH, "dataset": "/data/calibration.json"}, 422, "dataset"),
        ({**SEARCH, "data": "/data/calibration.json"}, 422, "data"),
        ({**SEARCH, "sparsities": [0.99]}, 422, "reach"),
        ({**SEARCH, "sparsities": [0.5, 0.5]}, 422, "each target once"),
        ({**SEARCH, "sparsities": []}, 422, "sparsities"),
        ({**SEARCH, "evaluations": 10**9}, 422, "evaluations"),
        ({**SEARCH, "space": "all", "scope": "ffn"}, 422, "decoder"),
        ({**SEARCH, "space": "heads"}, 422, "'attention', 'layers', 'all'"),
        ({"kind": "register", "model": "new", "folder": "../secrets"}, 422, "folder"),
        ({"kind": "register", "model": "new", "folder": "/etc"}, 422, "folder"),
        ({"kind": "register", "model": "..", "folder": "a"}, 422, "a URL can carry"),
        ({"kind": "register", "model": "tiny/ranking", "folder": "a"}, 422, "a URL can carry"),
        ({"kind": "register", "model": "new", "folder": "a/./b"}, 422, "folder"),
        ({"kind": "register", "model": "new", "folder": "a/.hidden"}, 422, "folder"),
        ({"kind": "register", "model": "new", "folder": "a", "conversations": 3}, 422, "conversations"),
        ({"kind": "measure", "model": "tiny", "dataset": DATASET, "statistics": ["magic"]}, 422, "statistics"),
        ({"kind": "train", "model": "tiny", "space": "all,bits"}, 422, "need a search alone"),
        ({"kind": "train", "model": "tiny", "space": "density"}, 422, "need a search alone"),
        ({**SEARCH, "space": "density", "scope": "model"}, 422, "Leave the scope out"),
        ({**SEARCH, "space": "density", "sparsities": [0.9]}, 422, "lowest density"),
        ({**SEARCH, "latency": {"device": "abacus"}}, 404, "device"),
        ({**SEARCH, "latency": {"device": "l4", "shares": [0.001]}}, 422, "fastest configuration"),
        ({**SEARCH, "latency": {"device": "l4", "shares": [1.5]}}, 422, "less than 1"),
        ({**SEARCH, "space": "bits", "latency": {"device": "l4"}}, 422, "where units may change"),
        ({"kind": "apply", "plan": "nope"}, 404, "plan"),
        ({"kind": "recover", "plan": "nope", "dataset": DATASET}, 404, "plan"),
        ({"kind": "recover", "plan": "nope", "dataset": DATASET, "recipe": {"mode": "all"}}, 422, "mode"),
        ({"kind": "recover", "plan": "nope", "dataset": DATASET, "recipe": {"epochs": 1, "steps": 1}}, 422, "not both"),
        ([], 422, ""),
    ],
)
def test_what_is_wrong_is_told_before_it_waits(client: TestClient, body: Any, status: int, words: str) -> None:
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == status, answer.text
    assert words in answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert client.get("/v1/jobs").json()["total"] == 0


def test_every_kind_can_be_asked_for(client: TestClient, repository: Repository) -> None:
    plan = client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.5}).json()
    for body in (
        {"kind": "register", "model": "new", "folder": "llava-hf/llava-1.5-7b-hf", "dataset": DATASET},
        {"kind": "measure", "model": "tiny", "dataset": DATASET, "statistics": ["gradients"]},
        SEARCH,
        {"kind": "train", "model": "tiny"},
        {"kind": "apply", "plan": plan["plan_id"]},
        {"kind": "recover", "plan": plan["plan_id"], "dataset": DATASET, "recipe": {"minutes": 3}},
    ):
        document = asked(client, body)
        assert document["kind"] == body["kind"]
        assert document["model"] == ("new" if body["kind"] == "register" else "tiny")
    listed = client.get("/v1/jobs").json()
    assert [item["kind"] for item in listed["items"]] == list(KINDS[::-1])


def test_weights_in_fewer_bits_are_not_trained(client: TestClient, repository: Repository) -> None:
    anatomy = register_model(repository, "grouped", made_up_anatomy(hidden=32, fingerprint="e" * 64)).anatomy
    plan = make_plan(
        anatomy,
        Architecture.of({Site(1, Sublayer.FFN): Option(32, 4)}),
        model_id="grouped",
        target=PlanTarget(sparsity=0.0),
        ranking=PlanRanking(sha256="d" * 64),
        method="by hand",
    )
    repository.add_plan(PlanRecord("by hand", plan))
    asked(client, {"kind": "apply", "plan": plan.plan_id})
    answer = client.post("/v1/jobs", json={"kind": "recover", "plan": plan.plan_id, "dataset": DATASET})
    assert answer.status_code == 422
    assert "must be plain numbers" in answer.json()["rule"]
    assert "layer 1, ffn: 4 bits" in answer.text


def test_the_parts_of_a_recovery_are_different_data_sets(client: TestClient) -> None:
    plan = client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.5}).json()
    body = {"kind": "recover", "plan": plan["plan_id"], "dataset": DATASET}
    for part, name, status in (("selection", "e" * 64, 404), ("validation", DATASET, 422)):
        answer = client.post("/v1/jobs", json={**body, part: name})
        assert answer.status_code == status
        assert ("data set" if status == 404 else "named twice") in answer.text


def test_an_idempotency_key_makes_one_job(client: TestClient) -> None:
    first = asked(client, **{"Idempotency-Key": "k"})
    again = client.post("/v1/jobs", json=SEARCH, headers={"Idempotency-Key": "k"})
    assert (again.status_code, again.json()) == (200, first)
    # Defaults that are written out are the same request.
    same = client.post("/v1/jobs", json={**SEARCH, "evaluations": 200}, headers={"Idempotency-Key": "k"})
    assert same.json()["id"] == first["id"]
    other = client.post("/v1/jobs", json={**SEARCH, "seed": 1}, headers={"Idempotency-Key": "k"})
    assert (other.status_code, other.json()["type"]) == (409, "urn:lop:conflict")
    assert client.get("/v1/jobs").json()["total"] == 1


def test_lists_have_pages_and_filters(client: TestClient, repository: Repository) -> None:
    for number in range(5):
        repository.add_job(NewJob("search", "tiny", SEARCH | {"seed": number}, "somebody"))
    repository.add_job(NewJob("train", "other", {"kind": "train", "model": "other"}, "somebody"))
    page = client.get("/v1/jobs?limit=2&kind=search").json()
    assert (len(page["items"]), page["total"], page["offset"]) == (2, 5, 0)
    following = client.get(page["next"]).json()
    assert [x["settings"]["seed"] for x in page["items"] + following["items"]] == [4, 3, 2, 1]
    assert client.get("/v1/jobs?model=other").json()["total"] == 1
    assert client.get("/v1/jobs?status=done").json()["total"] == 0
    for wrong in ("status=lost", "kind=magic", "limit=0", "model="):
        assert client.get(f"/v1/jobs?{wrong}").status_code == 422


def test_cancelling_and_queueing_again(client: TestClient, repository: Repository) -> None:
    waiting, running = asked(client), asked(client, {**SEARCH, "seed": 1})
    answer = client.delete(f"/v1/jobs/{waiting['id']}")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert client.delete(f"/v1/jobs/{waiting['id']}").status_code == 200
    repository.claim_job("w", stale_after=HOUR)
    answer = client.delete(f"/v1/jobs/{running['id']}")
    assert (answer.status_code, answer.json()["status"], answer.json()["is_cancelling"]) == (202, "running", True)
    assert client.post(f"/v1/jobs/{running['id']}/retry").status_code == 409
    repository.finish_job(running["id"], "w", result={"model": "tiny"})
    assert client.delete(f"/v1/jobs/{running['id']}").status_code == 409
    again = client.post(f"/v1/jobs/{waiting['id']}/retry")
    assert (again.status_code, again.json()["status"]) == (200, "queued")
    for path in ("/v1/jobs/nope", "/v1/jobs/nope/events"):
        assert client.get(path).status_code == 404
    assert client.delete("/v1/jobs/nope").status_code == client.post("/v1/jobs/nope/retry").status_code == 404


def test_events_end_with_the_job_and_go_on_after_the_last_one_seen(client: TestClient, repository: Repository) -> None:
    job_id = asked(client)["id"]
    repository.claim_job("w", stale_after=HOUR)
    repository.report_job(job_id, "w", progress=JobProgress(1, 2, "s"), as_event=True, log=["a line"])
    repository.finish_job(job_id, "w", error="the model is gone")
    found = events(client, job_id)
    assert [(kind, number) for kind, number, _ in found] == [
        ("status", "1"),
        ("status", "2"),
        ("log", "3"),
        ("progress", "4"),
        ("status", "5"),
    ]
    assert found[3][2]["progress"] == {"done": 1, "total": 2, "stage": "s", "best": None, "seconds_left": None}
    assert (found[2][2]["line"], found[4][2]["status"]) == ("a line", "failed")
    assert found[4][2]["error"] == "the model is gone"
    assert events(client, job_id, **{"Last-Event-ID": "3"}) == found[3:]
    assert events(client, job_id, **{"Last-Event-ID": "99"}) == []
    assert client.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": "x"}).status_code == 422


def test_events_of_a_running_job_are_told_as_they_come(
    client: TestClient, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = asked(client)["id"]
    looks = 0

    async def sleep(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 1:
            repository.claim_job("w", stale_after=HOUR)
        if looks == 2:
            repository.finish_job(job_id, "w", result={"model": "tiny"})

    monkeypatch.setattr("service.routes.jobs.asyncio.sleep", sleep)
    assert [data["status"] for _, _, data in events(client, job_id)] == ["queued", "running", "done"]


def test_events_go_on_when_the_database_is_back_and_end_when_the_job_is_gone(
    client: TestClient, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = SqlRepository.list_job_events
    failures: Iterator[Exception | None] = iter([None, StorageUnavailableError("away"), None])
    job_id = asked(client)["id"]
    looks = 0

    def list_events(self: SqlRepository, job: str, **options: Any) -> Any:
        if (failure := next(failures)) is not None:
            raise failure
        return look(self, job, **options)

    async def sleep(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            repository.claim_job("w", stale_after=HOUR)
            repository.finish_job(job_id, "w", result={"model": "tiny"})

    monkeypatch.setattr(SqlRepository, "list_job_events", list_events)
    monkeypatch.setattr("service.routes.jobs.asyncio.sleep", sleep)
    assert [data["status"] for _, _, data in events(client, job_id)] == ["queued", "running", "done"]
    failures = iter([None, NotFoundError("removed with its model")])
    other = asked(client)["id"]
    assert [data["status"] for _, _, data in events(client, other)] == ["queued"]


def test_head_of_events_ends(client: TestClient) -> None:
    answer = client.head(f"/v1/jobs/{asked(client)['id']}/events")
    assert (answer.status_code, answer.content) == (200, b"")


def test_a_job_of_another_version_is_shown_without_settings(client: TestClient, repository: Repository) -> None:
    queued, _ = repository.add_job(NewJob("search", "tiny", {"data": "/x", "search": {}}, "migration"))
    found = client.get(f"/v1/jobs/{queued.id}").json()
    assert (found["settings"], found["status"]) == (None, JobStatus.QUEUED)


def test_a_result_of_another_version_is_shown_as_none(client: TestClient, repository: Repository) -> None:
    """One job must not take the whole list with it."""
    job, _ = repository.add_job(NewJob("train", "tiny", {"kind": "train", "model": "tiny"}, "somebody"))
    repository.claim_job("w", stale_after=timedelta(hours=1))
    repository.finish_job(job.id, "w", result={"predictors": ["p", "q"]})
    for shown in (client.get(f"/v1/jobs/{job.id}").json(), client.get("/v1/jobs").json()["items"][0]):
        assert (shown["status"], shown["result"]) == ("done", None)
    assert client.get(f"/jobs/{job.id}").status_code == client.get("/jobs").status_code == 200


def test_a_search_that_was_queued_with_a_retired_setting_is_still_read() -> None:
    assert read_settings({**SEARCH, "probes": None}) == read_settings(SEARCH) is not None
