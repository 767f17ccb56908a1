"""Rankings by their sha256."""

import pytest
from fastapi.testclient import TestClient

from pruning.measuring.statistics import StatisticsKind
from storage.contract import Repository
from storage.records import BINARY
from tests.service.made_up import add_calibration, add_statistics, made_up_anatomy, ranking_file

CONTENT = ranking_file(made_up_anatomy())


@pytest.fixture
def sha256(repository: Repository) -> str:
    """The ranking of "tiny"."""
    return repository.get_model("tiny").ranking_sha256


def test_a_ranking_is_downloaded_by_its_content(client: TestClient, sha256: str) -> None:
    answer = client.get(f"/v1/rankings/{sha256}")
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["etag"] == f'"{sha256}"'
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-length"] == str(len(CONTENT))
    assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
    head = client.head(f"/v1/rankings/{sha256}", headers={"X-Request-ID": answer.headers["x-request-id"]})
    assert (head.status_code, head.content) == (200, b"")
    assert dict(head.headers) == dict(answer.headers)


def test_a_current_copy_is_not_sent_again(client: TestClient, sha256: str) -> None:
    for verb in ("GET", "HEAD"):
        answer = client.request(verb, f"/v1/rankings/{sha256}", headers={"If-None-Match": f'"{sha256}"'})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == f'"{sha256}"'


def test_what_is_no_ranking_is_not_found(client: TestClient, repository: Repository) -> None:
    add_calibration(repository)
    statistics = add_statistics(repository, repository.get_model("tiny"), StatisticsKind.ACTIVATIONS).sha256
    weights = repository.put_artifact(b"weights of a predictor", BINARY)
    for sha256 in (statistics, weights, "0" * 64):
        for header in ({}, {"If-None-Match": "*"}):
            answer = client.get(f"/v1/rankings/{sha256}", headers=header)
            assert answer.status_code == 404
            assert answer.json()["rule"] == "no ranking is stored under this sha256"
            assert client.head(f"/v1/rankings/{sha256}", headers=header).status_code == 404


@pytest.mark.parametrize("name", ["abc", "A" * 64, "g" * 64, "0" * 65, "%00" * 64])
def test_what_cannot_be_a_sha256_is_422(client: TestClient, name: str) -> None:
    answer = client.get(f"/v1/rankings/{name}")
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
