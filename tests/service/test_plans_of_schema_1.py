"""Plans that a server of before there was a schema 2 stored (revision bfafe5a, in assets/plans_of_schema_1.json).

Each with its request, the key of it, the stored document, and the response to the byte.
"""

import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from pruning.measuring.statistics import StatisticsKind
from pruning.planning.plan import PruningPlan
from storage.contract import Repository
from tests.service.made_up import add_calibration, add_search, add_statistics, made_up_anatomy

STORED: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "assets" / "plans_of_schema_1.json").read_text(encoding="utf-8")
)
V2 = "application/vnd.lop.plan.v2+json"
HALF = (8, 40, 64, 48)


@pytest.fixture(autouse=True)
def _known(repository: Repository, database_url: str) -> None:
    """What the plans were made from; the searches have ids that were drawn then."""
    add_calibration(repository)
    for kind in StatisticsKind:
        add_statistics(repository, repository.get_model("tiny"), kind)
    searches = {
        "evolution": add_search(repository, HALF, 0.02, calibration_id="c" * 64, validated_kl=0.05),
        "random": add_search(repository, HALF, 0.03, method="random", calibration_id="c" * 64),
    }
    notes = [json.loads(entry["response"])["provenance"]["note"] for entry in STORED]
    database = sqlite3.connect(database_url.removeprefix("sqlite:///"))
    with database:
        for method, search in searches.items():
            (was,) = {x[1] for note in notes if (x := re.search(rf"\b{method}: search (\w+),", note))}
            database.execute("UPDATE searches SET id = ? WHERE id = ?", (was, search.id))
    database.close()


@pytest.fixture
def rows(database_url: str, repository: Repository) -> Iterator[sqlite3.Connection]:
    """The database, with what the old server stored."""
    assert repository.list_models()
    database = sqlite3.connect(database_url.removeprefix("sqlite:///"))
    with database:
        for entry in STORED:
            plan_id = json.loads(entry["document"])["plan_id"]
            row = (plan_id, "tiny", entry["document"], entry["created_at"])
            database.execute("INSERT INTO plans (id, model_id, document, created_at) VALUES (?, ?, ?, ?)", row)
            request = (entry["request_key"], plan_id)
            database.execute("INSERT INTO plan_requests (request_key, plan_id) VALUES (?, ?)", request)
    yield database
    database.close()


def dump(rows: sqlite3.Connection) -> list[Any]:
    queries = ("SELECT * FROM plans ORDER BY id", "SELECT * FROM plan_requests ORDER BY number")
    return [rows.execute(query).fetchall() for query in queries]


@pytest.mark.parametrize("entry", STORED, ids=lambda entry: str(entry["request"]))
def test_an_equal_request_gets_the_very_same_plan(
    client: TestClient, rows: sqlite3.Connection, entry: dict[str, Any]
) -> None:
    before = dump(rows)
    answer = client.post("/v1/plans", json=entry["request"])
    assert (answer.status_code, answer.text) == (201, entry["response"])
    read = client.get(answer.headers["location"])
    assert (read.text, read.headers["etag"]) == (entry["response"], entry["etag"])
    newer = client.post("/v1/plans", json=entry["request"], headers={"accept": V2})
    plan = PruningPlan.from_json(newer.content)
    assert plan.plan_id == answer.json()["plan_id"]
    assert newer.json()["schema_version"] == 2
    assert plan == PruningPlan.from_json(answer.content).without_dense(made_up_anatomy())
    assert dump(rows) == before


@pytest.mark.parametrize("entry", STORED, ids=lambda entry: str(entry["request"]))
def test_a_new_plan_says_the_same_to_a_client_of_before(client: TestClient, entry: dict[str, Any]) -> None:
    """All but its id, which is the hash of a document of schema 2, and its time."""
    found, was = client.post("/v1/plans", json=entry["request"]).json(), json.loads(entry["response"])
    assert found["plan_id"] != was["plan_id"]
    assert found | {"plan_id": "", "created_at": ""} == was | {"plan_id": "", "created_at": ""}


def test_what_old_plans_say_of_their_quality_and_recovery(client: TestClient, rows: sqlite3.Connection) -> None:
    assert rows.execute("SELECT COUNT(*) FROM plans").fetchone() == (len(STORED),)
    plans = [client.post("/v1/plans", json=x["request"], headers={"accept": V2}).json() for x in STORED]
    by_method = {plan["method"]: plan for plan in plans}
    assert by_method["evolution"]["predicted"]["of"] == "unseen"
    assert by_method["random"]["predicted"]["of"] == "calibration"
    assert by_method["flap"]["recovery"] == [{"kind": "bias"}]
    assert by_method["wanda-sp"]["recovery"] == []
    dense = next(plan for plan in plans if plan["target"]["sparsity"] == 0)
    assert dense["layers"] == []
