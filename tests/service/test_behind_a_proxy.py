"""HEAD requests, the prefix that a proxy takes away, and bodies that are compressed."""

import gzip
import json
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from lop.client import Client
from pruning.errors import InputError
from service.app import create_app
from service.settings import Settings, load_settings
from storage.contract import Repository
from tests.lop.app_transport import AppTransport
from tests.service.made_up import register_model

GETS = ["/healthz", "/readyz", "/v1/models", "/v1/models/tiny", "/v1/models/tiny/ranking", "/v1/devices",
        "/v1/devices/l4", "/v1/predictors", "/docs", "/openapi.json"]  # fmt: skip


@pytest.fixture
def prefixed(database_url: str, repository: Repository) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(database_url=database_url, root_path="/lop"))) as client:
        yield client


@pytest.mark.parametrize("path", GETS)
def test_head_is_get_without_the_content(client: TestClient, path: str) -> None:
    client.headers["X-Request-ID"] = "both"
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert dict(head.headers) == dict(get.headers)
    assert int(get.headers["content-length"]) == len(get.content) > 0


def test_head_of_a_plan_and_of_what_is_not_there(client: TestClient) -> None:
    plan = client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.3})
    path = plan.headers["location"]
    assert client.head(path).headers["etag"] == client.get(path).headers["etag"]
    assert client.head(path, headers={"if-none-match": client.head(path).headers["etag"]}).status_code == 304
    missing = client.head("/v1/models/none")
    assert (missing.status_code, missing.content) == (404, b"")
    assert client.head("/v1/plans").status_code == 405
    assert client.post("/healthz").headers["allow"] == "GET, HEAD"


def test_everything_that_is_said_of_paths_has_the_prefix(prefixed: TestClient) -> None:
    """The proxy takes /lop away, so requests come without it."""
    assert 'data-document="/lop/openapi.json"' in prefixed.get("/docs").text
    assert prefixed.get("/openapi.json").json()["servers"] == [{"url": "/lop"}]
    answer = prefixed.post("/v1/plans", json={"model": "tiny", "sparsity": 0.3})
    assert answer.headers["location"] == f"/lop/v1/plans/{answer.json()['plan_id']}"
    assert answer.json()["ranking"]["url"] == "/lop/v1/models/tiny/ranking"
    again = prefixed.get(answer.headers["location"].removeprefix("/lop"))
    assert again.content == answer.content
    model = prefixed.get("/v1/models/tiny").json()
    assert model["ranking"]["url"] == "/lop/v1/models/tiny/ranking"
    assert prefixed.get("/v1/models").json()["items"] == [model]
    assert prefixed.get("/v1/devices?limit=2").json()["next"] == "/lop/v1/devices?limit=2&offset=2"


def test_requests_with_the_prefix_are_answered_too(prefixed: TestClient) -> None:
    """A proxy that takes nothing away."""
    for path in GETS:
        assert prefixed.get(f"/lop{path}").status_code == 200, path
        assert prefixed.get(f"/lop{path}").content == prefixed.get(path).content
    body = json.dumps({"id": "x", "padding": "x" * 100_000})
    for prefix in ("", "/lop"):  # the larger limit of this path holds
        answer = prefixed.post(f"{prefix}/v1/devices", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 422


def test_the_client_follows_links_behind_a_prefix(database_url: str, repository: Repository) -> None:
    for number in range(120):
        register_model(repository, f"m{number}")
    app = create_app(Settings(database_url=database_url, root_path="/lop"))
    with Client("http://server.example/lop", transport=AppTransport(app)) as client:
        assert len(client.models()) == 121
        plan = client.plan(model="tiny", sparsity=0.3)
        assert plan.ranking.url == "http://server.example/lop/v1/models/tiny/ranking"
        assert client.ranking(plan)


def test_without_a_setting_nothing_has_a_prefix(client: TestClient) -> None:
    assert 'data-document="/openapi.json"' in client.get("/docs").text
    assert "servers" not in client.get("/openapi.json").json()
    assert client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.3}).headers["location"].startswith("/v1/")


@pytest.mark.parametrize(
    "root_path", ["lop", "/lop//x", "//lop", "/a/../b", "/a?b", "/v1", "/docs/x", "http://x/lop", "/ü"]
)
def test_a_prefix_that_is_none(root_path: str) -> None:
    with pytest.raises(InputError, match=r"LOP_ROOT_PATH.*prefix"):
        load_settings(root_path=root_path)


def test_a_prefix_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOP_ROOT_PATH", "/tools/lop/")
    assert load_settings().root_path == "/tools/lop"
    assert load_settings(root_path="/").root_path == ""


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate, gzip", "zstd", "GZIP"])
@pytest.mark.parametrize("path", ["/v1/plans", "/v1/devices"])
def test_an_encoded_body_is_an_unsupported_media_type(client: TestClient, coding: str, path: str) -> None:
    body = gzip.compress(json.dumps({"model": "tiny", "sparsity": 0.3}).encode())
    answer = client.post(path, content=body, headers={"content-type": "application/json", "content-encoding": coding})
    assert answer.status_code == 415
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["accept-encoding"] == "identity"
    problem = answer.json()
    assert (problem["status"], coding in problem["values"], "uncompressed" in problem["remedy"]) == (415, True, True)


def test_a_body_that_says_it_is_as_it_is(client: TestClient) -> None:
    answer = client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.3}, headers={"content-encoding": "identity"})
    assert answer.status_code == 201
