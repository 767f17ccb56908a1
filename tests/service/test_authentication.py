"""Keys: who is let in, who is not, and what they are told."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from fastapi.testclient import TestClient

from pruning.errors import AccessError, InputError, TooManyRequestsError
from service.app import create_app
from service.authentication import OPEN, needed_scope
from service.keys import REMEMBERED_SECONDS, Asker, KeyRing, new_key, parse_limit
from service.routes import jobs as routes_jobs
from service.settings import Settings
from storage.contract import Repository
from storage.records import KeyScope, NewJob
from tests.storage.examples import dataset

PLAN = {"model": "tiny", "sparsity": 0.5}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def make(repository: Repository, scope: KeyScope = KeyScope.READ, name: str = "notebook", **options: object) -> str:
    record, key = new_key(name, scope, **options)  # type: ignore[arg-type]
    repository.add_key(record)
    return key


def test_a_key_is_stored_as_a_salted_hash(repository: Repository) -> None:
    one, other = make(repository), make(repository)
    records = repository.list_keys()
    assert one != other
    for key, record in zip((one, other), records, strict=True):
        _, key_id, secret = key.split("_", 2)
        assert record.id == key_id
        assert len(secret) == 43
        assert secret not in str({field: getattr(record, field) for field in ("salt", "digest", "name", "id")})
        assert record.digest not in repr(record)
    assert len({(record.salt, record.digest) for record in records}) == 2


def test_from_the_first_key_on_nobody_is_let_in_without_one(client: TestClient, repository: Repository) -> None:
    stale = bearer(new_key("of another server", KeyScope.READ)[1])
    for headers in ({}, stale, {"Authorization": "nonsense"}):
        assert client.get("/v1/models", headers=headers).status_code == 200
    key = make(repository)
    with TestClient(client.app) as fresh:  # the other one remembers for two seconds that there was none
        refused = TestClient(create_app(client.app.state.resources.settings)).get("/v1/models")  # type: ignore[attr-defined]
        assert (refused.status_code, refused.json()["type"]) == (401, "urn:lop:unauthorized")
        assert refused.headers["www-authenticate"].startswith("Bearer")
        assert "lop key create" in refused.json()["remedy"]
        assert fresh.get("/v1/models", headers=bearer(key)).status_code == 200
    for path in OPEN:
        assert client.get(path).status_code == 200


@pytest.mark.parametrize("scope", KeyScope)
def test_scopes(settings: Settings, repository: Repository, scope: KeyScope) -> None:
    repository.add_dataset(dataset())
    headers = bearer(make(repository, scope))
    job = {"kind": "train", "model": "tiny"}
    theirs, _ = repository.add_job(NewJob("train", "tiny", job, "somebody else"))
    with TestClient(create_app(settings), headers=headers) as client:
        asks = {
            KeyScope.READ: [client.get("/v1/models"), client.get("/v1/jobs"), client.get("/nowhere")],
            KeyScope.PLAN: [client.post("/v1/plans", json=PLAN)],
            KeyScope.RUN: [
                client.post("/v1/jobs", json=job),
                client.post("/v1/datasets", content=b""),
                client.post("/v1/devices", json={}),
                client.put("/anything/new"),
            ],
            KeyScope.ADMIN: [client.post(f"/v1/jobs/{theirs.id}/retry"), client.delete(f"/v1/jobs/{theirs.id}")],
        }
    for needed, answers in asks.items():
        for answer in answers:
            refused = answer.status_code == 403
            assert refused == (not scope.allows(needed)), answer.text
            if refused and needed is not KeyScope.ADMIN:
                assert answer.json()["needs"] == needed.value
                assert f"a key of scope {needed}" in answer.json()["rule"]
                assert f'scope="{needed}"' in answer.headers["www-authenticate"]


def test_who_asked_may_change_their_own_job(settings: Settings, repository: Repository) -> None:
    key, renewed = make(repository, KeyScope.RUN), make(repository, KeyScope.RUN)
    other = make(repository, KeyScope.RUN, "another")
    with TestClient(create_app(settings)) as client:
        made = client.post("/v1/jobs", json={"kind": "train", "model": "tiny"}, headers=bearer(key)).json()
        assert made["asked_by"] == "notebook"
        refused = client.delete(f"/v1/jobs/{made['id']}", headers=bearer(other))
        assert (refused.status_code, refused.json()["needs"]) == (403, "admin")
        assert client.delete(f"/v1/jobs/{made['id']}", headers=bearer(renewed)).status_code == 200


def test_keys_that_open_nothing(settings: Settings, repository: Repository) -> None:
    good = make(repository)
    expired, old_key = new_key("old", KeyScope.ADMIN, lifetime=timedelta(hours=1))
    repository.add_key(replace(expired, expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    revoked = make(repository, KeyScope.ADMIN)
    repository.revoke_key(revoked.split("_")[1])
    wrong = good[:-1] + ("A" if good[-1] != "A" else "B")
    with TestClient(create_app(settings)) as client:
        for key, words in (
            (old_key, "expired"),
            (revoked, "revoked"),
            (wrong, "that the server knows"),
            (good.replace(good.split("_")[1], "0" * 12), "that the server knows"),
            (f"{good} ", "200"),
            ("lop_x_y", "Bearer lop_"),
            ("", "Bearer lop_"),
        ):
            answer = client.get("/v1/models", headers=bearer(key))
            if words == "200":
                assert answer.status_code == 200
                continue
            assert answer.status_code == 401, key
            assert words in answer.json()["rule"]
            assert not key or key not in answer.text
        two = client.get("/v1/models", headers=[("Authorization", f"Bearer {good}")] * 2)
        assert (two.status_code, two.json()["values"]) == (401, "2 Authorization headers")
        assert client.get("/v1/models", headers={"Authorization": f"Basic {good}"}).status_code == 401


def test_a_key_that_is_revoked_opens_nothing_after_two_seconds(repository: Repository) -> None:
    key, now = make(repository), 100.0
    ring = KeyRing(lambda: repository, is_loopback=True, limit="1000/minute", clock=lambda: now)
    sent = [f"Bearer {key}"]
    assert ring.known(sent) is None
    asker = ring.find(sent)
    assert ring.known(sent) == asker
    repository.revoke_key(key.split("_")[1])
    now += REMEMBERED_SECONDS / 2
    assert ring.known(sent) == asker
    now += REMEMBERED_SECONDS / 2
    assert ring.known(sent) is None
    for headers in (sent, []):  # the last key is revoked, and nobody is let in without one
        with pytest.raises(AccessError):
            ring.find(headers)


def test_who_is_still_good(repository: Repository) -> None:
    now = 100.0
    ring = KeyRing(lambda: repository, is_loopback=True, limit="1/hour", clock=lambda: now)
    nobody = ring.find([])
    assert nobody.key_id is None
    assert ring.is_still_good(nobody)
    key, other = make(repository), make(repository, name="other")
    asker, another = ring.find([f"Bearer {key}"]), ring.find([f"Bearer {other}"])
    now += REMEMBERED_SECONDS
    assert [ring.is_still_good(asker) for _ in range(5)] == [True] * 5  # no limit counts them
    assert not ring.is_still_good(nobody)  # there are keys now
    repository.revoke_key(key.split("_")[1])
    assert ring.is_still_good(asker)
    now += REMEMBERED_SECONDS
    assert [ring.is_still_good(asker), ring.is_still_good(another)] == [False, True]
    expired, _ = new_key("old", KeyScope.READ, lifetime=timedelta(hours=1))
    repository.add_key(replace(expired, expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    assert not ring.is_still_good(Asker("old", KeyScope.READ, expired.id))
    assert not ring.is_still_good(Asker("gone", KeyScope.READ, "0" * 12))


def test_a_stream_ends_when_its_key_is_revoked(
    settings: Settings, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes_jobs, "POLL_SECONDS", 0.01)
    key, other = make(repository), make(repository)
    job, _ = repository.add_job(NewJob("train", "tiny", {"kind": "train", "model": "tiny"}, "notebook"))
    app, polls = create_app(settings), 0
    ring: KeyRing = app.state.ring
    ring._clock = lambda: 10.0 * polls
    asked = ring.is_still_good

    def counted(asker: Asker) -> bool:
        nonlocal polls
        polls += 1
        if polls == 3:
            repository.revoke_key(key.split("_")[1])
        return asked(asker)

    monkeypatch.setattr(ring, "is_still_good", counted)
    with TestClient(app) as client:
        text = client.get(f"/v1/jobs/{job.id}/events", headers=bearer(key)).text  # the job never ends
        assert "queued" in text
        assert polls == 3
        assert client.get(f"/v1/jobs/{job.id}/events", headers=bearer(key)).status_code == 401
        assert client.get(f"/v1/jobs/{job.id}", headers=bearer(other)).json()["status"] == "queued"


def test_use_is_noted_now_and_then(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    key = make(repository)
    ring = KeyRing(lambda: repository, is_loopback=True, limit="1000/minute")
    notes: list[datetime] = []
    note = type(repository).note_key_use

    def noting(self: Repository, key_id: str, at: datetime) -> None:
        notes.append(at)
        note(self, key_id, at)

    monkeypatch.setattr(type(repository), "note_key_use", noting)
    for _ in range(3):
        ring.find([f"Bearer {key}"])
    assert [record.last_used_at for record in repository.list_keys()] == notes
    assert len(notes) == 1


def test_a_server_that_others_reach_lets_nobody_in_without_keys(repository: Repository) -> None:
    ring = KeyRing(lambda: repository, is_loopback=False, limit="1000/minute")
    with pytest.raises(AccessError, match="needs a key"):
        ring.find([])


def test_limits_are_a_keys_own(settings: Settings, repository: Repository) -> None:
    slow, other = make(repository, limit="3/hour"), make(repository)
    with TestClient(create_app(settings)) as client:
        answers = [client.get("/v1/models", headers=bearer(slow)) for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 3601
        assert answers[-1].json()["type"] == "urn:lop:too-many-requests"
        assert client.get("/v1/models", headers=bearer(other)).status_code == 200
    ring = KeyRing(lambda: repository, is_loopback=True, limit="2/hour")
    for _ in range(2):
        ring.find([f"Bearer {other}"])
    with pytest.raises(TooManyRequestsError):
        ring.known([f"Bearer {other}"])


def test_what_is_not_named_takes_a_key_that_may_run() -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE", "MAGIC"):
        assert needed_scope(method, "/v1/whatever/comes") is KeyScope.RUN
    assert needed_scope("GET", "/v1/whatever/comes") is KeyScope.READ
    assert needed_scope("POST", "/v1/plans/") is KeyScope.RUN


@pytest.mark.parametrize(
    "options", [{"name": ""}, {"name": "a\n"}, {"name": "x" * 101}, {"lifetime": timedelta(0)}, {"limit": "much"}]
)
def test_keys_that_cannot_be_made(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        new_key(**({"name": "n", "scope": KeyScope.READ} | options))  # type: ignore[arg-type]


def test_limits_in_words() -> None:
    assert parse_limit("100/minute").amount == 100
    with pytest.raises(InputError, match="100/minute"):
        parse_limit("")
