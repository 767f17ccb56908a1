"""Logging in with a key, and what other sites can do with a browser that is logged in: nothing."""

from datetime import timedelta
from html import unescape
from re import search

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.keys import new_key
from service.page.session import COOKIE, is_own, new_session, session_of, token_of
from service.settings import Settings
from storage.contract import Repository
from storage.records import KeyScope, NewJob

SITE = {"Sec-Fetch-Site": "cross-site"}


def make(repository: Repository, scope: KeyScope = KeyScope.RUN, name: str = "notebook", **options: object) -> str:
    record, key = new_key(name, scope, **options)  # type: ignore[arg-type]
    repository.add_key(record)
    return key


def token_in(text: str) -> str:
    found = search(r'name="csrf" value="([0-9a-f]{64})"', text)
    assert found is not None
    return found[1]


def log_in(client: TestClient, key: str, next_page: str = "/") -> tuple[int, str]:
    form = {"csrf": token_in(client.get("/login").text), "key": key, "next": next_page}
    answer = client.post("/login", data=form, follow_redirects=False)
    return answer.status_code, answer.headers.get("location", "")


@pytest.fixture
def browser(settings: Settings, repository: Repository) -> TestClient:
    """Of a server that has keys."""
    make(repository, KeyScope.READ, "first")
    return TestClient(create_app(settings))


def test_whoever_has_no_key_is_led_to_the_form_and_back(browser: TestClient, repository: Repository) -> None:
    key = make(repository)
    answer = browser.get("/explorer?model=tiny&sparsity=0.5", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (
        303,
        "/login?next=%2Fexplorer%3Fmodel%3Dtiny%26sparsity%3D0.5",
    )
    form = browser.get(answer.headers["location"])
    assert 'value="/explorer?model=tiny&sparsity=0.5"' in unescape(form.text)
    status, location = log_in(browser, key, "/explorer?model=tiny&sparsity=0.5")
    assert (status, location) == (303, "/explorer?model=tiny&sparsity=0.5")
    shown = browser.get(location)
    assert shown.status_code == 200
    assert "notebook" in shown.text
    assert key not in shown.text
    # The links of pages into the API work, and what changes something there takes the header.
    assert browser.get("/v1/models").status_code == 200
    assert browser.post("/v1/plans", json={"model": "tiny", "sparsity": 0.5}).status_code == 401
    assert browser.post("/logout", data={"csrf": token_in(shown.text)}, follow_redirects=False).status_code == 303
    assert browser.get("/", follow_redirects=False).status_code == 303


def test_the_cookie_is_for_this_server_alone(browser: TestClient, repository: Repository) -> None:
    key = make(repository)
    form = {"csrf": token_in(browser.get("/login").text), "key": f" {key}\n"}
    cookie = browser.post("/login", data=form, follow_redirects=False).headers["set-cookie"]
    assert cookie.startswith(f"{COOKIE}={key};")
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert "Max-Age" not in cookie
    assert "Secure" not in cookie
    with TestClient(browser.app, base_url="https://testserver") as encrypted:
        assert "Secure" in encrypted.get("/login").headers["set-cookie"]


def test_keys_that_open_nothing(browser: TestClient, repository: Repository) -> None:
    for key in ("", "lop_wrong", new_key("of another server", KeyScope.ADMIN)[1]):
        assert log_in(browser, key)[0] == 401
    revoked = make(repository)
    assert log_in(browser, revoked)[0] == 303
    repository.revoke_key(revoked.split("_")[1])
    with TestClient(create_app(browser.app.state.resources.settings), cookies=dict(browser.cookies)) as later:  # type: ignore[attr-defined]
        answer = later.get("/jobs", follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=%2Fjobs")
        part = later.get("/jobs", headers={"HX-Request": "true"})
        assert (part.status_code, part.headers["hx-redirect"]) == (401, "/login?next=%2Fjobs")


@pytest.mark.parametrize(
    "elsewhere",
    [
        "https://example.org/",
        "//example.org",
        "/\\example.org",
        "/v1/models",
        "/jobs\r\nX: y",
        "javascript:alert(1)",
        "",
    ],
)
def test_nobody_is_led_to_another_site(browser: TestClient, repository: Repository, elsewhere: str) -> None:
    assert log_in(browser, make(repository), elsewhere) == (303, "/")


def test_a_key_of_another_scope_is_told_which_it_takes(browser: TestClient, repository: Repository) -> None:
    job, _ = repository.add_job(NewJob("train", "tiny", {"kind": "train", "model": "tiny"}, "somebody"))
    reader, runner = make(repository, KeyScope.READ, "reader"), make(repository, KeyScope.RUN, "runner")
    assert log_in(browser, reader)[0] == 303
    page = browser.get(f"/jobs/{job.id}")
    assert "Cancel" not in page.text
    refused = browser.post(f"/jobs/{job.id}/cancel", data={"csrf": token_in(page.text)})
    assert (refused.status_code, "a key of scope run" in refused.text) == (403, True)
    refused = browser.get("/explorer?sparsity=0.5")
    assert (refused.status_code, "a key of scope plan" in refused.text) == (403, True)
    assert browser.get("/explorer/curve?model=tiny").status_code == 403
    browser.cookies.clear()
    assert log_in(browser, runner)[0] == 303
    refused = browser.post(f"/jobs/{job.id}/cancel", data={"csrf": token_in(browser.get(f"/jobs/{job.id}").text)})
    assert (refused.status_code, "scope admin" in refused.text) == (403, True)


def test_two_keys_at_once(browser: TestClient, repository: Repository) -> None:
    """A header is what somebody wrote for this request; of two cookies of one name, one is not ours."""
    good, other = make(repository), make(repository, KeyScope.READ, "other")
    assert (
        browser.get("/v1/models", headers={"Authorization": "Bearer x", "Cookie": f"{COOKIE}={good}"}).status_code
        == 401
    )
    two = {"Cookie": f"{COOKIE}={good}; {COOKIE}={other}"}
    assert browser.get("/jobs", headers=two, follow_redirects=False).status_code == 303
    assert browser.get("/jobs", headers={"Cookie": f"a=b; {COOKIE}={good}"}, follow_redirects=False).status_code == 200


@pytest.mark.parametrize("has_keys", [True, False])
def test_forms_of_other_sites_change_nothing(settings: Settings, repository: Repository, has_keys: bool) -> None:
    job, _ = repository.add_job(NewJob("train", "tiny", {"kind": "train", "model": "tiny"}, "notebook"))
    key = make(repository) if has_keys else None
    with TestClient(create_app(settings)) as client:
        if key:
            assert log_in(client, key)[0] == 303
        token = token_in(client.get(f"/jobs/{job.id}").text)
        path = f"/jobs/{job.id}/cancel"
        for data, headers in (
            ({}, {}),
            ({"csrf": ""}, {}),
            ({"csrf": "\u00e9"}, {}),
            ({"csrf": token_of(new_session())}, {}),
            ({"csrf": token}, SITE),
            ({"csrf": token}, {"Sec-Fetch-Site": "same-site"}),
            ({"csrf": token}, {"Cookie": f"{COOKIE}={key or new_session()}x"}),
        ):
            refused = client.post(path, data=data, headers=headers, follow_redirects=False)
            assert refused.status_code in (303, 401, 403, 422), refused.text
            assert refused.headers.get("location", "/login").startswith("/login")
        assert client.post(path, json={"csrf": token}).status_code == 422
        assert client.post(path, content=b"csrf=" + b"x" * 10**6).status_code in (413, 422)
        assert repository.get_job(job.id).status == "queued"
        assert client.post(path, data={"csrf": token}, headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200
        assert repository.get_job(job.id).status == "cancelled"


def test_a_link_from_elsewhere_is_followed_once_more_from_here(browser: TestClient, repository: Repository) -> None:
    """The cookie is `SameSite=Strict`: a browser does not send it along with what another site links to."""
    path = '/explorer?model=tiny&sparsity=0.5&x="><script>'
    answer = browser.get(path, headers=SITE, follow_redirects=False)
    assert (answer.status_code, "set-cookie" in answer.headers) == (200, False)
    assert '<meta http-equiv="refresh"' in answer.text
    assert "<script" not in answer.text
    assert browser.get("/v1/models", headers=SITE).status_code == 401
    assert log_in(browser, make(repository, lifetime=timedelta(hours=1)))[0] == 303
    assert browser.get("/explorer?model=tiny", headers=SITE).status_code == 200


def test_sessions_and_tokens() -> None:
    one, other = new_session(), new_session()
    assert one != other
    assert is_own(one, token_of(one))
    assert not is_own(one, token_of(other))
    assert not is_own(None, token_of(one))
    for line in (
        b"",
        b"lop_session=",
        b"lop_session=short",
        b"lop_session=" + b"x" * 101,
        b"lop_session=a b" + b"x" * 30,
    ):
        assert session_of({"headers": [(b"cookie", line)]}) is None
