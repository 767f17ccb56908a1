"""A site that has its own name resolve to 127.0.0.1 gets nothing of a server that lets everybody in."""

import pytest
from fastapi.testclient import TestClient

from pruning.errors import InputError, StorageUnavailableError
from service.app import create_app
from service.keys import new_key
from service.settings import Settings, load_settings
from storage.contract import Repository
from storage.records import KeyScope
from tests.service.conftest import AwayRepository

OTHERS = ("evil.test", "evil.test:8000", "localhost.evil.test", "127.0.0.1.evil.test", "192.168.0.7", "[::2]",
          "localhost@evil.test", "127.0.0.1:80@evil.test", "[::1].evil.test", "", "localhost:evil")  # fmt: skip
OWN = ("localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:0", "127.0.0.2:80", "[::1]", "[::1]:8000", "localhost:")


@pytest.fixture
def own_names(settings: Settings) -> Settings:
    """Without the names of tests."""
    return settings.model_copy(update={"allowed_hosts": ""})


@pytest.fixture
def key(repository: Repository) -> str:
    record, key = new_key("notebook", KeyScope.ADMIN)
    repository.add_key(record)
    return key


def statuses(client: TestClient, hosts: tuple[str, ...], path: str = "/v1/models") -> dict[str, int]:
    return {host: client.get(path, headers={"Host": host}).status_code for host in hosts}


@pytest.mark.parametrize("path", ["/v1/models", "/", "/login", "/openapi.json", "/readyz", "/metrics", "/nowhere"])
def test_without_a_key_only_loopback_names_are_answered(own_names: Settings, repository: Repository, path: str) -> None:
    with TestClient(create_app(own_names)) as client:
        assert set(statuses(client, OTHERS, path).values()) == {421}
        assert set(statuses(client, OWN, path).values()) == {404 if path == "/nowhere" else 200}
        assert set(statuses(client, OTHERS, path).values()) == {421}


def test_who_is_refused_is_told_what_to_do(own_names: Settings, repository: Repository) -> None:
    with TestClient(create_app(own_names)) as client:
        refused = client.post("/v1/plans", content=b"x" * 10**5, headers={"Host": "evil.test"})
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.headers["connection"] == "close"
        assert (refused.json()["status"], refused.json()["values"]) == (421, "'evil.test'")
        assert "LOP_ALLOWED_HOSTS" in refused.json()["remedy"]
        two = client.get("/v1/models", headers=[("Host", "localhost"), ("Host", "localhost")])
        assert two.status_code == 421
        documents = client.get("/openapi.json", headers={"Host": "localhost"}).json()["paths"].values()
    assert all("421" in operation["responses"] for operations in documents for operation in operations.values())


def test_with_keys_any_name_is_answered(own_names: Settings, repository: Repository, key: str) -> None:
    with TestClient(create_app(own_names)) as client:
        assert set(statuses(client, ("evil.test", "lop.example.com")).values()) == {401}
        assert client.get("/readyz", headers={"Host": "lop.example.com"}).status_code == 200
        named = {"Host": "lop.example.com", "Authorization": f"Bearer {key}"}
        assert client.get("/v1/models", headers=named).status_code == 200


def test_a_key_that_is_made_meanwhile_is_seen(own_names: Settings, repository: Repository) -> None:
    app = create_app(own_names)
    now = 100.0
    app.state.ring._clock = lambda: now
    client = TestClient(app)
    assert statuses(client, ("lop.example.com",)) == {"lop.example.com": 421}
    repository.add_key(new_key("first", KeyScope.READ)[0])
    now += 2.5
    assert statuses(client, ("lop.example.com",)) == {"lop.example.com": 401}


@pytest.mark.parametrize("has_key", [False, True])
def test_names_that_are_set_are_the_only_ones(
    own_names: Settings, repository: Repository, request: pytest.FixtureRequest, has_key: bool
) -> None:
    headers = {"Authorization": f"Bearer {request.getfixturevalue('key')}"} if has_key else {}
    for host in ("127.0.0.1", "0.0.0.0") if has_key else ("127.0.0.1",):
        settings = own_names.model_copy(update={"allowed_hosts": " lop.example.com, Proxy,", "host": host})
        with TestClient(create_app(settings), headers=headers) as client:
            assert set(statuses(client, ("lop.example.com", "LOP.example.com:443", "proxy", *OWN)).values()) == {200}
            assert set(statuses(client, (*OTHERS, "x.lop.example.com")).values()) == {421}
            # Probes ask for a pod by its address; the metrics take a key besides, where there are any.
            for path in ("/healthz", "/readyz", "/metrics"):
                assert set(statuses(client, OTHERS, path).values()) == {200}


def test_a_database_that_is_away_opens_nothing(own_names: Settings) -> None:
    away = AwayRepository(StorageUnavailableError("the database must answer"))
    client = TestClient(create_app(own_names, repository=away))  # type: ignore[arg-type]
    refused = client.get("/healthz", headers={"Host": "evil.test"})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert client.get("/healthz", headers={"Host": "localhost"}).status_code == 200


@pytest.mark.parametrize("names", ["http://lop.example.com", "lop.example.com:80", "*", "a b", "-x", "lop/x"])
def test_what_is_no_name(names: str) -> None:
    with pytest.raises(InputError, match="LOP_ALLOWED_HOSTS"):
        load_settings(allowed_hosts=f"fine.example.com,{names}")
    assert load_settings(allowed_hosts="::1,192.168.0.7").allowed_host_names == {"::1", "192.168.0.7"}
