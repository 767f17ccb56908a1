import hashlib

from fastapi.testclient import TestClient

from storage.contract import Repository
from tests.service.made_up import made_up_anatomy, ranking_file, register_model

RANKING = ranking_file(made_up_anatomy())
SHA256 = hashlib.sha256(RANKING).hexdigest()


def test_a_model_as_the_service_shows_it(client: TestClient) -> None:
    assert client.get("/v1/models/tiny").json() == {
        "id": "tiny",
        "model_type": "llava",
        "text_model_type": "llama",
        "fingerprint": "a" * 64,
        "weights_sha256": "b" * 64,
        "dtype": "F32",
        "hidden_size": 16,
        "ffn_widths": [64, 64, 128, 64],
        "kv_groups": [2, 2, 2, 2],
        "parameters": {"ffn": 15360, "decoder": 18560, "model": 21760},
        "ranking": {"sha256": SHA256, "url": "/v1/models/tiny/ranking"},
        "created_at": "2026-01-31T12:00:00Z",
    }


def test_the_path_on_the_server_is_not_shown(client: TestClient) -> None:
    assert "/models/tiny" not in client.get("/v1/models/tiny").text.replace("/v1/models/tiny/ranking", "")


def test_the_ranking_file(client: TestClient) -> None:
    answer = client.get("/v1/models/tiny/ranking")
    assert answer.status_code == 200
    assert answer.content == RANKING
    assert answer.headers["etag"] == f'"{SHA256}"'
    assert answer.headers["content-length"] == str(len(RANKING))
    assert answer.headers["content-type"] == "application/octet-stream"
    assert "max-age" in answer.headers["cache-control"]


def test_head_tells_the_same_without_the_file(client: TestClient) -> None:
    client.headers["X-Request-ID"] = "both"
    head, get = client.head("/v1/models/tiny/ranking"), client.get("/v1/models/tiny/ranking")
    assert (head.status_code, head.content) == (200, b"")
    assert dict(head.headers) == dict(get.headers)


def test_a_current_copy_is_not_sent_again(client: TestClient) -> None:
    for header in (f'"{SHA256}"', f'W/"{SHA256}"', f'"other", "{SHA256}"', "*"):
        answer = client.get("/v1/models/tiny/ranking", headers={"If-None-Match": header})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == f'"{SHA256}"'
    stale = client.get("/v1/models/tiny/ranking", headers={"If-None-Match": '"other"'})
    assert (stale.status_code, stale.content) == (200, RANKING)


def test_ids_with_slashes_and_blanks_are_found_by_their_own_links(client: TestClient, repository: Repository) -> None:
    register_model(repository, "llava-hf/llava 1.5 7b")
    [listed] = [m for m in client.get("/v1/models").json()["items"] if m["id"] == "llava-hf/llava 1.5 7b"]
    assert listed["ranking"]["url"] == "/v1/models/llava-hf/llava%201.5%207b/ranking"
    assert client.get(listed["ranking"]["url"]).content == RANKING
    assert client.get("/v1/models/llava-hf/llava%201.5%207b").json() == listed
    plan = client.post("/v1/plans", json={"model": listed["id"], "sparsity": 0.5}).json()
    assert plan["ranking"]["url"] == listed["ranking"]["url"]
