"""Data sets over HTTP: archives in, records out."""

import asyncio
import json
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from pruning.data.conversations import calibration_id, load_conversations
from service.app import create_app
from service.datasets import DatasetShelf
from service.places import Places
from service.settings import Settings
from storage.contract import Repository
from storage.data_store import open_store
from tests.pruning.data.test_archives import tarred, zipped
from tests.pruning.data.test_packed_data import document, item, picture
from tests.tiny_models import write_conversations

ZIP = {"Content-Type": "application/zip"}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def client(database_url: str, repository: Repository, store: Path) -> Iterator[TestClient]:
    settings = Settings(database_url=database_url, data_store=str(store), max_dataset_bytes=20_000)
    with TestClient(create_app(settings)) as client:
        yield client


def archive(path: Path) -> bytes:
    """The folder of a conversation file, zipped."""
    files = [x for x in sorted(path.parent.rglob("*")) if x.is_file()]
    return zipped(*((str(x.relative_to(path.parent)), x.read_bytes()) for x in files))


def test_an_archive_becomes_a_data_set_that_jobs_read(
    client: TestClient, repository: Repository, store: Path, tmp_path: Path
) -> None:
    path = write_conversations(tmp_path / "data", 5)
    answer = client.post("/v1/datasets?name=mine", content=archive(path), headers=ZIP)
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert answer.headers["location"] == f"/v1/datasets/{made['id']}"
    assert (made["name"], made["conversations"], made["answers"], made["added_by"]) == ("mine", 5, 10, "loopback")
    assert client.get(answer.headers["location"]).json() == made
    again = client.post("/v1/datasets", content=archive(path), headers={"Content-Type": "application/octet-stream"})
    assert again.json() == made
    assert [x["id"] for x in client.get("/v1/datasets").json()["items"]] == [made["id"]]
    assert client.get(f"/v1/datasets/{'e' * 64}").status_code == 404
    shelf = DatasetShelf(repository, open_store(str(store)))
    cache = tmp_path / "cache"
    cache.mkdir()
    for place in (None, cache, cache):
        with shelf.unpacked(made["id"], 3, cache=place) as (name, conversations):
            assert name == "mine"
            assert calibration_id(conversations) == calibration_id(load_conversations(path, 3))
    assert [x.name for x in cache.iterdir()] == [made["id"]]


def test_conversations_of_this_machine_are_the_same_data_set(
    client: TestClient, repository: Repository, store: Path, tmp_path: Path
) -> None:
    path = write_conversations(tmp_path / "data", 3)
    shelf = DatasetShelf(repository, open_store(str(store)))
    local = shelf.add_conversations(load_conversations(path), name="local", added_by="command line")
    assert client.post("/v1/datasets", content=archive(path), headers=ZIP).json()["id"] == local.id


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "whole zip or tar file"),
        (b"{}" * 1000, "whole zip or tar file"),
        (zipped(("../a.json", b"[]")), "a path below its folder"),
        (tarred(("a.json", b""), kind=b"2", link="/etc/passwd"), "'a.json' is a link"),
        (zipped(("a.json", b"[" * 10_000)), "must be JSON"),
        (zipped(("a.json", document(item("a", "1.png")))), "must be in the archive"),
        (zipped(("a.json", document(item("a", "1.png"))), ("1.png", b"x")), "every image must be readable"),
    ],
)
def test_what_is_refused_leaves_nothing(client: TestClient, store: Path, content: bytes, rule: str) -> None:
    answer = client.post("/v1/datasets", content=content, headers=ZIP)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json"), answer.text
    assert rule in answer.json()["detail"]
    assert client.get("/v1/datasets").json()["total"] == 0
    assert not store.exists()


def test_an_archive_is_declared_as_one(client: TestClient) -> None:
    for headers in ({}, {"Content-Type": "application/json"}, {**ZIP, "Content-Encoding": "gzip"}):
        answer = client.post("/v1/datasets", content=b"x", headers=headers)
        assert (answer.status_code, answer.headers["connection"]) == (415, "close")


@pytest.mark.parametrize("stream", [False, True])
def test_a_long_archive_is_refused_as_it_comes(client: TestClient, stream: bool) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(30):
            yield bytes(1000)

    answer = client.post("/v1/datasets", content=pieces() if stream else bytes(30_000), headers=ZIP)
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")
    assert "LOP_MAX_DATASET_BYTES" in answer.json()["remedy"]
    # Longer than any other body may be, and still taken.
    large = zipped(("a.json", document(item("a", "1.png"))), ("1.png", picture((60, 60), form="BMP")), method=0)
    assert 10_000 < len(large) < 20_000
    assert client.post("/v1/datasets", content=large, headers=ZIP).status_code == 201


def test_an_upload_that_stands_still_gives_its_place_back(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Asked as the server would: the client announces more than it sends, and stays."""
    monkeypatch.setattr("service.routes.datasets.LONGEST_PAUSE_SECONDS", 0.05)
    scope = {
        "type": "http", "method": "POST", "path": "/v1/datasets", "raw_path": b"/v1/datasets", "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/zip"), (b"content-length", b"20")],
        "client": ("127.0.0.1", 1), "scheme": "http", "http_version": "1.1", "server": ("127.0.0.1", 8000),
        "asgi": {"version": "3.0"},
    }  # fmt: skip
    pieces = [{"type": "http.request", "body": b"PK", "more_body": True}]
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not pieces:
            await asyncio.sleep(3600)
        return pieces.pop()

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    uploads = cast(FastAPI, client.app).state.resources.uploads = Places(1, rule="so many", remedy="later")
    asyncio.run(cast(FastAPI, client.app)(scope, receive, send))
    assert sent[0]["status"] == 408
    with uploads.taken():
        pass  # there is room again


def test_so_many_archives_at_once_and_no_more(client: TestClient, tmp_path: Path) -> None:
    content = archive(write_conversations(tmp_path / "data", 1))
    uploads = cast(FastAPI, client.app).state.resources.uploads = Places(1, rule="so many", remedy="later")
    with uploads.taken():
        refused = client.post("/v1/datasets", content=content, headers=ZIP)
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:lop:busy")
        assert (refused.headers["retry-after"], refused.headers["connection"]) == ("30", "close")
    for _ in range(2):  # whatever becomes of one, its place is free again
        assert client.post("/v1/datasets", content=b"no archive", headers=ZIP).status_code == 422
    assert client.post("/v1/datasets", content=content, headers=ZIP).status_code == 201


def test_a_full_disk_is_503(client: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = archive(write_conversations(tmp_path / "data", 1))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for place in ("storage.data_store.shutil.copyfileobj", "pruning.data.packed_data.tarfile.open"):
        with monkeypatch.context() as patch:
            patch.setattr(place, full)
            answer = client.post("/v1/datasets", content=content, headers=ZIP)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5"), answer.text
        assert "No space left on device" in answer.json()["detail"]
    assert client.post("/v1/datasets", content=content, headers=ZIP).status_code == 201
    assert json.loads(client.get("/v1/datasets").text)["total"] == 1
