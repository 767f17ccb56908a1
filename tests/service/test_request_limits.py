from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from storage.contract import Repository

LIMIT = 1024


@pytest.fixture
def client(database_url: str, repository: Repository) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(database_url=database_url, max_request_bytes=LIMIT))) as client:
        yield client


def padded(size: int) -> bytes:
    """A valid request of exactly `size` bytes."""
    return b'{"model": "tiny", "sparsity": 0.5}'.ljust(size)


def chunks(content: bytes) -> Iterator[bytes]:
    """`content` as a stream without a declared length."""
    for start in range(0, len(content), 100):
        yield content[start : start + 100]


@pytest.mark.parametrize("stream", [False, True])
def test_the_limit_is_exact(client: TestClient, stream: bool) -> None:
    headers = {"Content-Type": "application/json"}
    fits, too_long = padded(LIMIT), padded(LIMIT + 1)
    answer = client.post("/v1/plans", content=chunks(fits) if stream else fits, headers=headers)
    assert answer.status_code == 201
    answer = client.post("/v1/plans", content=chunks(too_long) if stream else too_long, headers=headers)
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["connection"] == "close"
    assert answer.json()["rule"] == "a request body has at most 1024 bytes"
    assert "LOP_MAX_REQUEST_BYTES" in answer.json()["remedy"]


@pytest.mark.parametrize(
    "declared", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x", ""]
)
def test_what_is_not_json_is_415(client: TestClient, declared: str) -> None:
    answer = client.post("/v1/plans", content=padded(40), headers={"Content-Type": declared})
    assert answer.status_code == 415
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["remedy"] == "Send Content-Type: application/json"


def test_no_content_type_is_415(client: TestClient) -> None:
    answer = client.post("/v1/plans", content=padded(40))
    assert answer.status_code == 415
    assert answer.json()["values"] == "no Content-Type"


@pytest.mark.parametrize("declared", ["application/json", "Application/JSON; charset=utf-8", "application/x+json"])
def test_json_by_any_of_its_names(client: TestClient, declared: str) -> None:
    assert client.post("/v1/plans", content=padded(40), headers={"Content-Type": declared}).status_code == 201
