from datetime import timedelta

import pytest
from fastapi.testclient import TestClient

from service.pagination import page_of
from storage.contract import Repository
from storage.records import PredictorRecord
from tests.service.made_up import NOW, register_model


def test_pages_by_hand() -> None:
    items, place = page_of([1, 2, 3, 4, 5], limit=2, offset=2, path="/x", query={"model": "a b"})
    assert items == [3, 4]
    assert place == {"total": 5, "limit": 2, "offset": 2, "next": "/x?model=a+b&limit=2&offset=4"}
    items, place = page_of([1, 2, 3, 4, 5], limit=1, offset=4, path="/x")
    assert (items, place["next"]) == ([5], None)
    assert page_of([1], limit=1, offset=9, path="/x") == ([], {"total": 1, "limit": 1, "offset": 9, "next": None})


def test_following_next_walks_through_all_models(client: TestClient, repository: Repository) -> None:
    names = ["tiny", *(f"model-{i}" for i in range(4))]
    for name in names[1:]:
        register_model(repository, name)
    seen, path = [], "/v1/models?limit=2"
    while path:
        page = client.get(path).json()
        assert page["total"] == 5
        seen += [item["id"] for item in page["items"]]
        path = page["next"]
    assert sorted(seen) == sorted(names)


@pytest.fixture
def predictors(repository: Repository) -> list[PredictorRecord]:
    """Two predictors of "tiny" and one of "other"; records only."""
    register_model(repository, "other")
    weights = repository.put_artifact(b"weights", "application/octet-stream")
    return [
        repository.add_predictor(PredictorRecord(name, model, weights, {"num_levels": 8}, NOW + timedelta(days=day)))
        for day, (name, model) in enumerate([("p1", "tiny"), ("p2", "other"), ("p3", "tiny")])
    ]


def test_predictors_of_all_models_or_of_one(client: TestClient, predictors: list[PredictorRecord]) -> None:
    assert [p["id"] for p in client.get("/v1/predictors").json()["items"]] == ["p1", "p2", "p3"]
    page = client.get("/v1/predictors", params={"model": "tiny", "limit": 1}).json()
    assert [p["id"] for p in page["items"]] == ["p1"]
    assert [p["id"] for p in client.get(page["next"]).json()["items"]] == ["p3"]
    assert client.get("/v1/predictors/p2").json() == {
        "id": "p2",
        "model": "other",
        "weights_sha256": predictors[1].weights_sha256,
        "config": {"num_levels": 8},
        "created_at": "2026-02-01T12:00:00Z",
    }
