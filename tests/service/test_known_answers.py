"""Answers that are sent again are those that would be made anew."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from service.known_answers import KnownAnswers
from service.planner import Planner
from storage.contract import Repository
from storage.sql_repository import SqlRepository
from tests.service.made_up import add_calibration, scan_samples

REQUEST = {"model": "tiny", "sparsity": 0.5}
COUNTED = 'lop_http_requests_total{method="POST",route="/v1/plans",status="201"}'


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
    assert found == [client.post("/v1/plans", json=REQUEST).content] * 4
    path = client.post("/v1/plans", json=REQUEST).headers["location"]
    assert client.get(path, params={"x": "y" * 5000}).content == client.get(path).content


def test_what_is_sent_again_is_counted_as_what_it_is(client: TestClient, planned: list[Any]) -> None:
    def counted() -> str:
        return next(line for line in client.get("/metrics").text.splitlines() if line.startswith(COUNTED))

    for _ in range(3):
        client.post("/v1/plans", json=REQUEST)
    before = counted()
    client.post("/v1/plans", json=REQUEST)
    assert len(planned) == 2
    assert (before, counted()) == (f"{COUNTED} 3.0", f"{COUNTED} 4.0")


def test_a_removed_model_has_no_answers(client: TestClient, repository: SqlRepository) -> None:
    path = client.post("/v1/plans", json=REQUEST).headers["location"]
    assert client.post("/v1/plans", json=REQUEST).status_code == client.post("/v1/plans", json=REQUEST).status_code
    assert client.get(path).status_code == client.get(path).status_code == 200
    repository.remove_model("tiny")
    assert client.post("/v1/plans", json=REQUEST).status_code == 404
    assert client.get(path).status_code == 404


class Maker:
    """An application that answers what it was sent, after `seconds`, and counts."""

    def __init__(self, status: int = 200, *, seconds: float = 0) -> None:
        self.made = 0
        self._status, self._seconds = status, seconds

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        self.made += 1
        body = b""
        while True:
            message = await receive()
            body += message["body"]
            if not message.get("more_body", False):
                break
        await asyncio.sleep(self._seconds)
        await send({"type": "http.response.start", "status": self._status, "headers": []})
        await send({"type": "http.response.body", "body": body})


def saying(mark: str | None) -> Callable[[], Awaitable[str | None]]:
    """What reads always the same mark."""

    async def read() -> str | None:
        return mark

    return read


async def ask(known: KnownAnswers, *parts: bytes, path: str = "/kept/1", send: Send | None = None) -> bytes:
    """The body that is answered to one that comes in `parts`."""
    waiting = [{"type": "http.request", "body": part, "more_body": n < len(parts)} for n, part in enumerate(parts, 1)]
    sent: list[Message] = []

    async def receive() -> Message:
        return waiting.pop(0)

    async def note(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []}
    await known(scope, receive, send or note)
    _, body = sent
    answered: bytes = body["body"]
    return answered


def test_many_at_once_share_a_look_that_began_after_they_came() -> None:
    looks: list[int] = []

    async def read() -> str:
        looks.append(len(looks))
        await asyncio.sleep(0.01)
        return "same"

    async def ask_often() -> list[bytes]:
        known = KnownAnswers(Maker(), read_mark=read, paths=("/kept",))
        return await asyncio.gather(*(ask(known, b"made") for _ in range(50)))

    assert asyncio.run(ask_often()) == [b"made"] * 50
    assert 1 <= len(looks) <= 3


@pytest.mark.parametrize(("status", "made"), [(200, 1), (404, 5)])
def test_many_at_once_have_an_answer_made_once(status: int, made: int) -> None:
    """But for one that is not kept: whoever waited for it has it made."""
    maker = Maker(status, seconds=0.01)

    async def ask_often() -> list[bytes]:
        known = KnownAnswers(maker, read_mark=saying("same"), paths=("/kept",))
        return await asyncio.gather(*(ask(known, b"made") for _ in range(5)))

    assert asyncio.run(ask_often()) == [b"made"] * 5
    assert maker.made == made


def test_who_waits_for_an_answer_that_is_broken_off_has_it_made() -> None:
    maker = Maker(seconds=0.05)

    async def ask_twice() -> bytes:
        known = KnownAnswers(maker, read_mark=saying("same"), paths=("/kept",))
        first, second = (asyncio.create_task(ask(known, b"made")) for _ in range(2))
        while not maker.made:
            await asyncio.sleep(0)
        first.cancel()
        return await second

    assert asyncio.run(ask_twice()) == b"made"
    assert maker.made == 2


def test_nobody_waits_for_long_for_an_answer_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose client may never read it."""
    monkeypatch.setattr("service.known_answers._LONGEST_WAIT_SECONDS", 0.01)
    maker = Maker()
    stuck = asyncio.Event()

    async def never(_message: Message) -> None:
        await stuck.wait()

    async def ask_beside() -> bytes:
        known = KnownAnswers(maker, read_mark=saying("same"), paths=("/kept",))
        first = asyncio.create_task(ask(known, b"made", send=never))
        while not maker.made:
            await asyncio.sleep(0)
        answered = await asyncio.wait_for(ask(known, b"made"), timeout=60)
        assert not first.done()
        first.cancel()
        return answered

    assert asyncio.run(ask_beside()) == b"made"
    assert maker.made == 2


@pytest.mark.parametrize(
    ("mark", "path", "parts", "made"),
    [
        ("same", "/kept", (b"asked",), 1),
        ("same", "/kept/1", (b"asked",), 1),
        (None, "/kept/1", (b"asked",), 3),  # a database that says nothing has every answer made
        ("same", "/keptalive", (b"asked",), 3),
        ("same", "/kept/1", (b"as", b"ked"), 3),  # a body in parts is not waited for
    ],
)
def test_what_is_made_anew(mark: str | None, path: str, parts: tuple[bytes, ...], made: int) -> None:
    maker = Maker()

    async def ask_three_times() -> list[bytes]:
        known = KnownAnswers(maker, read_mark=saying(mark), paths=("/kept",))
        return [await ask(known, *parts, path=path) for _ in range(3)]

    assert asyncio.run(ask_three_times()) == [b"asked"] * 3
    assert maker.made == made


def test_only_the_latest_answers_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.known_answers._MOST_ANSWERS", 2)
    maker = Maker()

    async def ask_for(*bodies: bytes) -> None:
        known = KnownAnswers(maker, read_mark=saying("same"), paths=("/kept",))
        for body in bodies:
            assert await ask(known, body) == body

    asyncio.run(ask_for(b"1", b"2", b"1", b"3", b"1", b"2"))
    assert maker.made == 4  # 2 was asked for longest ago when 3 came


def test_threads_ask_through_one_server(client: TestClient) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: client.post("/v1/plans", json=REQUEST).content, range(24)))
    assert len(set(answers)) == 1
