"""The ways through the service that touch the database, over PostgreSQL."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient

from pruning.allocators.registry import STATISTICAL_ALLOCATORS
from pruning.measuring.statistics import StatisticsKind
from service.app import create_app
from service.settings import Settings
from service.worker import WorkerOptions, run_worker
from storage.contract import Repository
from storage.records import JobStatus
from storage.sql_repository import open_repository
from tests.postgres import PostgresServer, postgres_server, postgres_url
from tests.service.made_up import add_calibration, add_search, add_statistics, register_model, scan_samples
from tests.storage.examples import job

__all__ = ["postgres_server", "postgres_url"]


@pytest.fixture
def repository(postgres_url: str) -> Iterator[Repository]:
    with open_repository(postgres_url) as repository:
        register_model(repository)
        yield repository


@pytest.fixture
def client(postgres_url: str, repository: Repository) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(database_url=postgres_url))) as client:
        yield client


def test_plans_are_made_once_and_read_for_ever(client: TestClient) -> None:
    request = {"model": "tiny", "sparsity": 0.3, "scope": "decoder"}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.post("/v1/plans", json=request), range(16)))
    assert {a.status_code for a in answers} == {201}
    assert len({a.content for a in answers}) == 1
    assert client.get(answers[0].headers["location"]).content == answers[0].content


def test_methods_models_and_health(client: TestClient, repository: Repository) -> None:
    assert client.get("/readyz").json() == {"status": "ready"}
    model = repository.get_model("tiny")
    repository.add_samples(scan_samples(model, add_calibration(repository), (0.01, 0.25, 0.4, 3.0)))
    assert client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.5}).json()["method"] == "additive-dp"
    ranking = client.get(client.get("/v1/models/tiny").json()["ranking"]["url"])
    assert ranking.headers["etag"] == f'"{model.ranking_sha256}"'


def test_methods_of_statistics_and_searches(client: TestClient, repository: Repository) -> None:
    model = repository.get_model("tiny")
    add_calibration(repository)
    for kind in StatisticsKind:
        add_statistics(repository, model, kind)
    for method in STATISTICAL_ALLOCATORS:
        request = {"model": "tiny", "sparsity": 0.5, "method": method}
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _, request=request: client.post("/v1/plans", json=request), range(4)))
        assert {a.status_code for a in answers} == {201}
        assert len({a.content for a in answers}) == 1
        assert client.get(answers[0].json()["ranking"]["url"]).status_code == 200
    add_search(repository, (8, 40, 64, 48), 0.02)
    plan = client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.5, "method": "evolution"}).json()
    assert (plan["predicted"]["quality"], plan["layers"][0]["ffn_width"]) == (0.02, 8)


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "é", "'; DROP TABLE plans; --"])
def test_odd_names_are_the_senders_problem(client: TestClient, text: str) -> None:
    body = json.dumps({"model": text, "sparsity": 0.5})
    answer = client.post("/v1/plans", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in {404, 422}


def test_the_worker(repository: Repository) -> None:
    queued, _ = repository.add_job(job(1))
    assert run_worker(repository, lambda claimed, _: claimed.settings, options=WorkerOptions(once=True)) == 1
    done = repository.get_job(queued.id)
    assert (done.status, done.result) == (JobStatus.DONE, queued.settings)


def test_a_database_that_goes_away_is_503_until_it_is_back(postgres_server: PostgresServer) -> None:
    name = postgres_server.create_database(migrated=True)
    settings = Settings(database_url=postgres_server.url(name))
    with open_repository(settings.database_url) as repository:
        register_model(repository)
    request = {"model": "tiny", "sparsity": 0.5}
    with TestClient(create_app(settings)) as client:
        assert client.get("/readyz").status_code == 200
        postgres_server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        ending = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname"
        postgres_server.execute(f"{ending} = '{name}'")
        for answer in (client.get("/readyz"), client.post("/v1/plans", json=request)):
            assert answer.status_code == 503
            assert answer.json()["type"] == "urn:lop:storage-unavailable"
        assert client.get("/healthz").status_code == 200
        postgres_server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        assert client.get("/readyz").status_code == 200
        assert client.post("/v1/plans", json=request).status_code == 201
    postgres_server.drop_database(name)
