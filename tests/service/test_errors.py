import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from pruning.errors import ConflictError, LopError, SchemaRevisionError, StorageUnavailableError
from service.app import create_app
from service.settings import Settings
from storage.contract import Repository
from tests.service.conftest import AwayRepository

PLAN = {"model": "tiny", "sparsity": 0.5}
JSON = {"Content-Type": "application/json"}


def problem_of(answer: object, status: int) -> dict[str, Any]:
    """The body of an error answer, after what every one of them must hold."""
    assert answer.status_code == status, answer.text  # type: ignore[attr-defined]
    assert answer.headers["content-type"] == "application/problem+json"  # type: ignore[attr-defined]
    problem: dict[str, Any] = answer.json()  # type: ignore[attr-defined]
    assert problem["status"] == status
    assert {"type", "title", "status", "detail", "instance", "rule", "values", "remedy"} <= set(problem)
    assert problem["rule"]
    assert "Traceback" not in json.dumps(problem)
    return problem


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"sparsity": 1}, "sparsity"),
        ({"sparsity": -0.1}, "sparsity"),
        ({"sparsity": "0.5"}, "sparsity"),
        ({"sparsity": True}, "sparsity"),
        ({"sparsity": [0.5]}, "sparsity"),
        ({"model": ""}, "model"),
        ({"model": 7}, "model"),
        ({"model": "a\0b"}, "model"),
        ({"model": "x" * 201}, "model"),
        ({"scope": "everything"}, "scope"),
        ({"round_to": 0}, "round_to"),
        ({"round_to": 8.5}, "round_to"),
        ({"round_to": "8"}, "round_to"),
        ({"round_to": 10**30}, "round_to"),
        ({"tp_size": 0}, "tp_size"),
        ({"tp_size": 2.0}, "tp_size"),
        ({"tp_size": 2**63}, "tp_size"),
        ({"method": "magic"}, "method"),
        ({"space": "heads"}, "space"),
        ({"device": ""}, "device"),
        ({"sparsety": 0.5}, "sparsety"),
    ],
)
def test_a_wrong_field_is_named(client: TestClient, change: dict[str, object], where: str) -> None:
    problem = problem_of(client.post("/v1/plans", json=PLAN | change), 422)
    assert f"body.{where}: " in str(problem["rule"])
    assert problem["type"] == "urn:lop:invalid-input"
    assert problem["instance"] == "/v1/plans"


def test_a_missing_field_is_named(client: TestClient) -> None:
    assert problem_of(client.post("/v1/plans", json={"sparsity": 0.5}), 422)["rule"] == "body.model: Field required"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"model": "tiny", "sparsity": NaN}',
        b'{"model": "tiny", "sparsity": Infinity}',
        b'{"model": "tiny", "sparsity": -Infinity}',
        b'{"model": "tiny", "sparsity": 1e999}',
        b'{"model": "tiny", "sparsity": ' + b"9" * 5000 + b"}",
        b'{"model": "tiny", "sparsity": ' + b"9" * 400 + b"}",
        b'{"model": "\\ud800", "sparsity": 0.5}',
        b'{"\\ud800": 1, "model": "tiny", "sparsity": 0.5}',
        b"[" * 60000,
        b'{"a":' * 10000 + b"1" + b"}" * 10000,
    ],
    ids=lambda body: repr(body[:40]),
)
def test_a_malformed_body_is_422(client: TestClient, body: bytes) -> None:
    problem_of(client.post("/v1/plans", content=body, headers=JSON), 422)


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("/v1/plans/none", "plan"),
        ("/v1/models/none", "model"),
        ("/v1/models/none/ranking", "model"),
        ("/v1/models/some/one", "model"),
        ("/v1/predictors/none", "predictor"),
        ("/nowhere", "Not Found"),
        ("/v1/plans/", "Not Found"),
    ],
)
def test_what_is_unknown_is_404(client: TestClient, path: str, rule: str) -> None:
    problem = problem_of(client.get(path), 404)
    assert rule in str(problem["rule"])
    assert problem["instance"] == path


def test_an_unknown_model_or_device_in_a_request_is_404_with_a_remedy(client: TestClient) -> None:
    assert "lop model" in str(problem_of(client.post("/v1/plans", json=PLAN | {"model": "none"}), 404)["remedy"])
    problem = problem_of(client.post("/v1/plans", json=PLAN | {"device": "toaster"}), 404)
    assert problem["values"] == "'toaster'"
    assert "jetson-orin-nano-8gb" in str(problem["remedy"])


@pytest.mark.parametrize("path", ["/v1/models/%00", "/v1/plans/%0a", "/v1/models/%00/ranking", "/v1/models?limit=0"])
def test_an_impossible_id_or_page_is_422(client: TestClient, path: str) -> None:
    problem_of(client.get(path), 422)


@pytest.mark.parametrize("limit", ["-1", "1001", "x", "9" * 30, "1e3", "NaN"])
def test_an_impossible_limit_is_422(client: TestClient, limit: str) -> None:
    assert problem_of(client.get("/v1/models", params={"limit": limit}), 422)["values"] == repr(limit)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/v1/plans", "POST"),
        ("POST", "/v1/models/tiny", "GET, HEAD"),
        ("OPTIONS", "/v1/jobs", "GET, POST, HEAD"),
        ("PUT", "/v1/jobs/x", "GET, DELETE, HEAD"),
        ("GET", "/v1/jobs/x/retry", "POST"),
    ],
)
def test_a_wrong_method_is_405_and_names_all_the_right_ones(
    client: TestClient, method: str, path: str, allowed: str
) -> None:
    answer = client.request(method, path)
    problem_of(answer, 405)
    assert answer.headers["allow"] == allowed


def test_the_method_that_was_asked_for_lacks_its_data(client: TestClient) -> None:
    problem = problem_of(client.post("/v1/plans", json=PLAN | {"method": "lop"}), 422)
    assert "needs a trained predictor" in str(problem["rule"])
    assert "lop train" in str(problem["remedy"])
    problem = problem_of(client.post("/v1/plans", json=PLAN | {"method": "additive-dp"}), 422)
    assert "sensitivity scan" in str(problem["rule"])
    assert "lop search" in str(problem["remedy"])


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (StorageUnavailableError("the database must answer", values="db:5432"), 503, "urn:lop:storage-unavailable"),
        (SchemaRevisionError("the schema is old", remedy="Run `lop db upgrade`"), 503, "urn:lop:schema-revision"),
        (ConflictError("the id is taken"), 409, "urn:lop:conflict"),
    ],
)
def test_errors_of_the_database(settings: Settings, error: LopError, status: int, kind: str) -> None:
    app = create_app(settings, repository=AwayRepository(error))  # type: ignore[arg-type]
    client = TestClient(app)
    for answer in (client.post("/v1/plans", json=PLAN), client.get("/v1/models"), client.get("/readyz")):
        problem = problem_of(answer, status)
        assert problem["type"] == kind
        assert problem["rule"] == error.rule
        # Waiting helps where the database is away, not where it is of another version.
        assert answer.headers.get("retry-after") == ("5" if isinstance(error, StorageUnavailableError) else None)
    assert client.get("/healthz").json() == {"status": "alive"}


def test_a_bug_of_ours_is_500_without_its_inside(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def has_keys(self) -> bool:
            return False

        def list_models(self) -> None:
            raise ZeroDivisionError("secret inside")

    app = create_app(settings, repository=Broken())  # type: ignore[arg-type]
    answer = TestClient(app, raise_server_exceptions=False).get("/v1/models")
    problem_of(answer, 500)
    assert "secret inside" not in answer.text
    assert "secret inside" in caplog.text


def test_the_database_file_is_absent(tmp_path: object) -> None:
    settings = Settings(database_url=f"sqlite:///{tmp_path}/none.db")
    with TestClient(create_app(settings)) as client:
        problem = problem_of(client.get("/readyz"), 503)
        assert "lop db upgrade" in str(problem["remedy"])
        problem_of(client.post("/v1/plans", json=PLAN), 503)
        assert client.get("/healthz").status_code == 200


def test_the_database_goes_back_to_an_older_revision(
    client: TestClient, repository: Repository, database_url: str
) -> None:
    import sqlite3

    assert client.get("/readyz").json() == {"status": "ready"}
    with sqlite3.connect(database_url.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0000'")
    connection.close()
    assert problem_of(client.get("/readyz"), 503)["type"] == "urn:lop:schema-revision"
