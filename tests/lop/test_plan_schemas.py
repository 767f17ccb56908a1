"""Clients and servers of before and after there was a second plan schema, in every pairing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import lop
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.loading import load_model
from pruning.errors import InputError, PlanError
from pruning.planning.plan import Kept, PlanLayer, PruningPlan
from pruning.planning.plan_downgrade import downgrade
from pruning.planning.plan_v1 import PlanV1
from service.app import create_app
from service.settings import Settings
from storage.contract import Repository
from storage.records import PlanRecord
from tests.lop.app_transport import AppTransport

V2 = "application/vnd.lop.plan.v2+json"


@pytest.fixture
def transport(database: str) -> AppTransport:
    return AppTransport(create_app(Settings(database_url=database)))


@pytest.fixture
def client(transport: AppTransport) -> Iterator[lop.Client]:
    with lop.Client("http://lop.test", transport=transport) as client:
        yield client


class OfBefore(httpx.BaseTransport):
    """A server of before: it knows schema 1 only, and does not look at Accept."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self._inner = inner
        self.asked: list[str] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.headers["accept"])
        del request.headers["accept"]
        return self._inner.handle_request(request)


def test_a_client_of_now_and_a_server_of_now(client: lop.Client) -> None:
    plan = client.plan(model="tiny", sparsity=0.0)
    assert plan.layers == ()  # of schema 1 every layer would be listed
    old = client.get_plan_v1(plan.plan_id)
    assert (old.schema_version, old.plan_id, len(old.layers)) == (1, plan.plan_id, 4)
    assert old.ranking.url == "http://lop.test/v1/models/tiny/ranking"


def test_a_client_of_now_and_a_server_of_before(transport: AppTransport, checkpoint: Path) -> None:
    before = OfBefore(transport)
    with lop.Client("http://lop.test", transport=before) as client:
        plan = client.plan(model="tiny", sparsity=0.4)
        assert before.asked == [f"{V2}, application/json;q=0.5"]
        assert client.get_plan(plan.plan_id) == plan
        ranking = client.ranking(plan)
    assert [layer.attention for layer in plan.layers] == [Kept(units=2)] * 4
    with lop.Client("http://lop.test", transport=transport) as client:
        newer = client.get_plan(plan.plan_id)
    anatomy = read_anatomy(checkpoint)
    assert plan.architecture(anatomy) == newer.architecture(anatomy)
    assert (plan.plan_id, plan.compensates) == (newer.plan_id, newer.compensates)
    cut = [lop.apply_plan(load_model(checkpoint), x, ranking) for x in (plan, newer)]
    shapes: list[Any] = [[tuple(p.shape) for p in model.parameters()] for model in cut]
    assert shapes[0] == shapes[1]


def test_a_client_of_before_and_a_server_of_now(
    transport: AppTransport, repository: Repository, checkpoint: Path
) -> None:
    """httpx accepts anything unless it is told otherwise, as the clients of before did."""
    with httpx.Client(base_url="http://lop.test", transport=transport) as http:
        answer = http.post("/v1/plans", json={"model": "tiny", "sparsity": 0.4})
        old = PlanV1.from_json(answer.content)
        plan = repository.get_plan(old.plan_id).plan
        url = "http://lop.test/v1/models/tiny/ranking"
        assert http.get(answer.headers["location"]).content == answer.content
    assert old == downgrade(plan, read_anatomy(checkpoint))
    assert url.endswith(old.ranking.url or "-")


def test_what_schema_1_cannot_say(client: lop.Client, repository: Repository) -> None:
    plan = client.plan(model="tiny", sparsity=0.4)
    layers = (PlanLayer(index=0, ffn=Kept(units=48, bits=4)),)
    repository.add_plan(PlanRecord("four bits", plan.model_copy(update={"plan_id": "four", "layers": layers})))
    assert client.get_plan("four").layers == layers
    with pytest.raises(InputError, match=rf"plan schema 1 holds .*'bits': 4.*Accept: {V2}".replace("+", r"\+")):
        client.get_plan_v1("four")


def test_a_server_that_answers_with_no_plan() -> None:
    for body in ('{"schema_version": 3}', "[]"):
        other = httpx.MockTransport(lambda _, body=body: httpx.Response(200, text=body))
        with lop.Client("http://x", transport=other) as client:
            with pytest.raises(PlanError, match="schema_version"):
                client.get_plan("p")
            with pytest.raises(PlanError, match="schema version 1"):
                client.get_plan_v1("p")


def test_plans_are_for_everyone_to_import() -> None:
    assert lop.PruningPlan is PruningPlan
