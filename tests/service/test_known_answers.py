"""Answers that are sent again are those that would be made anew."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi import Request, Response
from fastapi.testclient import TestClient

from service.known_answers import KnownAnswers
from service.planner import Planner
from storage.contract import Repository
from storage.sql_repository import SqlRepository
from tests.service.made_up import add_calibration, scan_samples

REQUEST = {"model": "tiny", "sparsity": 0.5}


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The requests that the planner was asked."""
    asked: list[Any] = []
    plan = Planner.plan

    def noted(self: Planner, request: Any) -> Any:
        asked.append(request)
        return plan(self, request)

    monkeypatch.setattr(Planner, "plan", noted)
    return asked


def test_a_plan_is_made_once_until_something_is_stored(
    client: TestClient, repository: Repository, planned: list[Any]
) -> None:
    first = client.post("/v1/plans", json=REQUEST)  # which stores it
    second = client.post("/v1/plans", json=REQUEST)
    assert len(planned) == 2
    third = client.post("/v1/plans", json=REQUEST)
    assert len(planned) == 2
    assert first.content == second.content == third.content
    assert {k: v for k, v in third.headers.items() if k != "x-request-id"} == {
        k: v for k, v in second.headers.items() if k != "x-request-id"
    }
    assert third.headers["x-request-id"] != second.headers["x-request-id"]
    model = repository.get_model("tiny")
    repository.add_samples(scan_samples(model, add_calibration(repository), (0.01, 0.25, 0.4, 3.0)))
    assert client.post("/v1/plans", json=REQUEST).json()["method"] == "additive-dp"
    assert len(planned) == 3


def test_what_an_answer_depends_on_is_told_apart(client: TestClient, planned: list[Any]) -> None:
    path = client.post("/v1/plans", json=REQUEST).headers["location"]
    for _ in range(2):
        assert client.post("/v1/plans", json=REQUEST).json()["schema_version"] == 1
        of_2 = {"Accept": "application/vnd.lop.plan.v2+json"}
        assert client.post("/v1/plans", json=REQUEST, headers=of_2).json()["schema_version"] == 2
        assert client.post("/v1/plans", json=REQUEST | {"sparsity": 0.25}).json()["target"]["sparsity"] == 0.25
        assert client.post("/v1/plans", content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
        read = client.get(path)
        assert read.json()["schema_version"] == 1
        assert client.get(path, headers=of_2).json()["schema_version"] == 2
        assert client.get(path, headers={"If-None-Match": read.headers["etag"]}).status_code == 304
        assert client.head(path).content == b""
        assert client.get("/v1/plans/nope").status_code == 404


def test_requests_that_are_blown_up_are_not_kept(client: TestClient, planned: list[Any]) -> None:
    padded, headers = json.dumps(REQUEST).encode() + b" " * 5000, {"Content-Type": "application/json"}
    found = [client.post("/v1/plans", content=padded, headers=headers).content for _ in range(4)]
    assert len(planned) == 4
    path = client.post("/v1/plans", json=REQUEST).headers["location"]
    assert client.get(path, params={"x": "y" * 5000}).status_code == 200
    known: KnownAnswers = client.app.state.resources.known_answers  # type: ignore[attr-defined]
    assert sum(len(repr(key)) for key in known._answers) < 4096
    assert found == [client.post("/v1/plans", json=REQUEST).content] * 4


def test_a_removed_model_has_no_answers(client: TestClient, repository: SqlRepository) -> None:
    path = client.post("/v1/plans", json=REQUEST).headers["location"]
    assert client.post("/v1/plans", json=REQUEST).status_code == client.post("/v1/plans", json=REQUEST).status_code
    assert client.get(path).status_code == client.get(path).status_code == 200
    repository.remove_model("tiny")
    assert client.post("/v1/plans", json=REQUEST).status_code == 404
    assert client.get(path).status_code == 404


def test_many_at_once_share_a_look_that_began_after_they_came() -> None:
    looks: list[int] = []

    def read() -> str:
        looks.append(len(looks))
        return "same"

    async def ask() -> list[Response]:
        known = KnownAnswers(read)

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def handle(_: Request) -> Response:
            return Response(b"made")

        def request() -> Request:
            scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
            return Request(scope, receive)

        return await asyncio.gather(*(known.answer(request(), handle) for _ in range(50)))

    assert {bytes(answer.body) for answer in asyncio.run(ask())} == {b"made"}
    assert 1 <= len(looks) <= 3


def test_a_database_that_says_nothing_has_every_answer_made() -> None:
    made = []

    async def ask() -> None:
        known = KnownAnswers(lambda: None)

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def handle(_: Request) -> Response:
            made.append(1)
            return Response(b"made")

        for _ in range(3):
            scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
            await known.answer(Request(scope, receive), handle)

    asyncio.run(ask())
    assert len(made) == 3


def test_threads_ask_through_one_server(client: TestClient) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: client.post("/v1/plans", json=REQUEST).content, range(24)))
    assert len(set(answers)) == 1
