"""A model that is removed while a server has it in memory, and another one that gets its id."""

from datetime import UTC, datetime

import pytest
from fastapi.testclient import TestClient

from pruning.allocators.methods import Method
from pruning.measuring.statistics import StatisticsKind
from storage.records import BINARY, ModelRecord
from storage.sql_repository import SqlRepository
from tests.service.made_up import (
    add_calibration,
    add_search,
    add_statistics,
    made_up_anatomy,
    ranking_file,
    scan_samples,
)


@pytest.fixture
def known(repository: SqlRepository) -> None:
    """What every method needs, but for a predictor."""
    model = repository.get_model("tiny")
    calibration = add_calibration(repository)
    repository.add_samples(scan_samples(model, calibration, (0.1, 0.2, 0.3, 0.4)))
    for kind in StatisticsKind:
        add_statistics(repository, model, kind)
    add_search(repository, (32, 32, 64, 32), 0.2, calibration_id=calibration)


def asked(method: Method | None = None, sparsity: float = 0.5) -> dict[str, object]:
    return {"model": "tiny", "sparsity": sparsity, "method": method}


def test_what_was_removed_is_not_found(client: TestClient, repository: SqlRepository, known: None) -> None:
    made = [
        answer
        for method in (None, *Method)
        if (answer := client.post("/v1/plans", json=asked(method))).status_code == 201
    ]
    assert len(made) >= 8
    assert client.get("/explorer?model=tiny").status_code == 200
    repository.remove_model("tiny")
    for method in (None, *Method):
        for sparsity in (0.5, 0.4):
            answer = client.post("/v1/plans", json=asked(method, sparsity))
            assert answer.status_code in (404, 422), (method, answer.text)
            if method is None:
                assert "no model is stored" in answer.json()["rule"]
    for path in (f"/v1/plans/{made[0].json()['plan_id']}", "/v1/models/tiny", "/explorer?model=tiny"):
        assert client.get(path).status_code == 404, path


def test_another_model_of_the_same_id_is_planned_by_what_it_is(
    client: TestClient, repository: SqlRepository, known: None
) -> None:
    before = client.post("/v1/plans", json=asked()).json()
    repository.remove_model("tiny")
    anatomy = made_up_anatomy((32, 32), fingerprint="9" * 64)
    sha256 = repository.put_artifact(ranking_file(anatomy), BINARY)
    repository.add_model(ModelRecord("tiny", anatomy, "d" * 64, sha256, "/models/other", datetime.now(UTC)))
    for sparsity in (0.5, 0.4):
        after = client.post("/v1/plans", json=asked(sparsity=sparsity)).json()
        assert after["model"]["fingerprint"] == "9" * 64 != before["model"]["fingerprint"]
        assert len(after["layers"]) == 2
        assert after["method"] == "uniform"
