"""Which schema of a plan a client gets: what it asks for, and schema 1 if it asks for nothing."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from pruning.planning.plan import PruningPlan
from pruning.planning.plan_v1 import PlanV1
from service.plan_forms import NotAcceptableError, PlanForm, wanted_forms
from tests.service.made_up import made_up_anatomy

if TYPE_CHECKING:
    from httpx2 import Response  # of the test client

V1, V2 = "application/json", "application/vnd.lop.plan.v2+json"
REQUEST = {"model": "tiny", "sparsity": 0.5}
Ask: TypeAlias = "Callable[..., Response]"


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        # Nothing, wildcards and JSON are schema 1.
        ([], [V1]),
        ([""], [V1]),
        (["*/*"], [V1]),
        (["application/*"], [V1]),
        (["application/json; charset=utf-8"], [V1]),
        (["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"], [V1]),
        # Schema 2 is for those who name it; of two liked alike, it says more.
        ([V2], [V2]),
        ([V2.upper()], [V2]),
        ([f"{V1}, {V2}"], [V2, V1]),
        ([V1, V2], [V2, V1]),
        ([f"*/*, {V2}"], [V2, V1]),
        ([f"{V2}, {V1};q=0.5"], [V2, V1]),
        ([f"{V2};q=0.5, {V1}"], [V1, V2]),
        ([f"{V2};q=0.1,*/*;q=0.05"], [V2, V1]),
        ([f"{V2}; Q=0.001 ,application/json ; q=0.002"], [V1, V2]),
        # The more specific range decides, whatever its quality; 0 is a no.
        ([f"application/*;q=0.1, */*;q=0.9, {V2};q=0.5"], [V2, V1]),
        ([f"{V1};q=0, */*, {V2}"], [V2]),
        ([f"{V2};q=0, */*"], [V1]),
        ([f"{V2};q=0.000, {V1}"], [V1]),
        # What is no media range is passed over.
        (["nonsense"], [V1]),
        ([",;,=/;q=1,//"], [V1]),
        (["\xff\x00, */json"], [V1]),
        ([f"{V2};q=2"], [V1]),
        ([f"{V2};q=-1, {V2};q=1e0, {V2};q=0.1234, {V2};q="], [V1]),
        ([f'{V1};title="a, {V2}; q=0";q=0.5'], [V1]),
        ([f'"{V2}'], [V1]),
        (["nonsense;q=1", V2], [V2]),
    ],
)
def test_what_a_header_wants(accept: list[str], wanted: list[str]) -> None:
    assert [form.value for form in wanted_forms(accept)] == wanted


@pytest.mark.parametrize(
    "accept", ["text/html", "application/vnd.lop.plan.v3+json", f"{V1};q=0", "*/*;q=0", f"{V1};q=0, */*", "image/*"]
)
def test_a_header_that_wants_neither(accept: str) -> None:
    with pytest.raises(NotAcceptableError, match=r"Accept: application/vnd\.lop\.plan\.v2\+json"):
        wanted_forms([accept])


@given(accept=st.lists(st.text(alphabet='aj/*+.;,=q01 "\\\t-', max_size=60), max_size=3))
def test_any_header_wants_something_or_is_refused(accept: list[str]) -> None:
    with suppress(NotAcceptableError):
        assert wanted_forms(accept)


@pytest.fixture(params=["POST", "GET"])
def ask(request: pytest.FixtureRequest, client: TestClient) -> Ask:
    """Ask for the plan of `REQUEST` with headers: by a request for it, and by its id."""
    location = client.post("/v1/plans", json=REQUEST).headers["location"]
    if request.param == "GET":
        return lambda **headers: client.get(location, headers=headers)
    return lambda **headers: client.post("/v1/plans", json=REQUEST, headers=headers)


def test_both_forms_are_the_same_plan(ask: Ask) -> None:
    old, new = ask(), ask(accept=V2)
    assert (old.headers["content-type"], new.headers["content-type"]) == (V1, V2)
    assert old.headers["vary"] == new.headers["vary"] == "Accept"
    assert old.headers["etag"] != new.headers["etag"]
    assert old.status_code == new.status_code
    assert old.headers.get("location") == new.headers.get("location")
    # Schema 1 lists all that is kept, schema 2 what is not dense.
    assert [x["ffn_width"] for x in old.json()["layers"]] == [32, 32, 64, 32]
    assert new.json()["layers"] == [{"index": i, "ffn": {"units": w}} for i, w in enumerate([32, 32, 64, 32])]
    plan = PruningPlan.from_json(new.content)
    assert (plan.plan_id, plan.target.space) == (old.json()["plan_id"], ("ffn",))
    assert PlanV1.from_json(old.content).plan_id == plan.plan_id
    assert PruningPlan.from_json(old.content).architecture(made_up_anatomy()) == plan.architecture(made_up_anatomy())


@pytest.mark.parametrize("accept", ["*/*", "nonsense", f"{V2};q=0.1, {V1}"])
def test_a_client_that_asks_for_nothing_newer_gets_the_same_bytes(ask: Ask, accept: str) -> None:
    assert ask(accept=accept).content == ask().content


def test_neither_form(ask: Ask) -> None:
    problem = problem_of(ask(accept="text/html"))
    assert problem["values"] == "'text/html'"
    assert V1 in problem["rule"]
    assert V2 in problem["rule"]


def problem_of(answer: "Response") -> dict[str, Any]:
    assert answer.status_code == 406, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["vary"] == "Accept"
    problem: dict[str, Any] = answer.json()
    assert problem["type"] == "urn:lop:not-acceptable"
    assert f"Accept: {V2}" in problem["remedy"]
    return problem


class TestAPlanBeyondSchema1:
    @pytest.fixture(autouse=True)
    def _four_bits(self, ask: Ask, database_url: str) -> None:
        """What was stored for `REQUEST` has a layer of four bits."""
        plan_id = ask().json()["plan_id"]
        with sqlite3.connect(database_url.removeprefix("sqlite:///")) as database:
            ((text,),) = database.execute("SELECT document FROM plans WHERE id = ?", (plan_id,))
            document = json.loads(text)
            document["layers"][1]["ffn"]["bits"] = 4
            database.execute("UPDATE plans SET document = ? WHERE id = ?", (json.dumps(document), plan_id))
        database.close()

    @pytest.mark.parametrize("accept", [None, "*/*", V1, "application/*", f"{V2};q=0, */*"])
    def test_is_refused_to_who_asks_for_schema_1_at_most(self, ask: Ask, accept: str | None) -> None:
        problem = problem_of(ask() if accept is None else ask(accept=accept))
        assert "layers.1: {'ffn'" in problem["values"]

    @pytest.mark.parametrize("accept", [V2, f"{V2};q=0.1, {V1}"])
    def test_is_given_to_who_takes_schema_2(self, ask: Ask, accept: str) -> None:
        answer = ask(accept=accept)
        assert answer.headers["content-type"] == V2
        assert answer.json()["layers"][1] == {"index": 1, "ffn": {"units": 32, "bits": 4}}


def test_a_client_that_holds_one_form_does_not_hold_the_other(client: TestClient) -> None:
    location = client.post("/v1/plans", json=REQUEST).headers["location"]
    tags = {form: client.get(location, headers={"accept": form}).headers["etag"] for form in PlanForm}
    assert tags[PlanForm.SCHEMA_1] == f'"{location.rpartition("/")[2]}"'  # as clients hold it from before
    for held in PlanForm:
        for asked in PlanForm:
            answer = client.get(location, headers={"accept": asked, "if-none-match": tags[held]})
            assert answer.status_code == (304 if held is asked else 200)
            assert (answer.headers["etag"], answer.headers["vary"]) == (tags[asked], "Accept")
        both = client.get(location, headers={"accept": held, "if-none-match": ", ".join(tags.values())})
        assert (both.status_code, both.headers["etag"]) == (304, tags[held])


def test_head_says_what_get_would(client: TestClient) -> None:
    location = client.post("/v1/plans", json=REQUEST).headers["location"]
    client.headers["X-Request-ID"] = "both"
    for form in PlanForm:
        head, get = (ask(location, headers={"accept": form}) for ask in (client.head, client.get))
        assert (head.status_code, head.content) == (200, b"")
        assert {**head.headers} == {**get.headers}
