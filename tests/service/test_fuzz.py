"""Whatever is sent, the service answers with a plan or with a problem that is the sender's, never with a 5xx."""

import itertools
import json
import string

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pruning.allocators.uniform import uniform_widths
from pruning.statistics import StatisticsKind
from service.methods.names import Method
from storage.contract import Repository
from tests.service.made_up import add_calibration, add_search, add_statistics, scan_samples

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(codec=None), max_size=10), inner, max_size=4)
    ),
    max_leaves=10,
)
# Mostly valid, so that the fuzz reaches the planner too.
REQUESTS = st.fixed_dictionaries(
    {
        "model": st.just("tiny") | JSON_VALUES,
        "sparsity": st.floats(0, 1) | st.floats(0, 1) | JSON_VALUES,
    },
    optional={
        "scope": st.sampled_from(["ffn", "decoder", "model"]) | JSON_VALUES,
        "round_to": st.integers(1, 300) | JSON_VALUES,
        "method": st.sampled_from([None, *Method]) | JSON_VALUES,
        "device": st.sampled_from([None, "l4"]) | JSON_VALUES,
        "other": JSON_VALUES,
    },
)
QUICK = settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture
def known(repository: Repository) -> None:
    """What every method needs, but for a predictor."""
    model = repository.get_model("tiny")
    repository.add_samples(scan_samples(model, add_calibration(repository), (0.1, 0.2, 0.3, 0.4)))
    for kind in StatisticsKind:
        add_statistics(repository, model, kind)
    for method, channels in itertools.product(("mcts", "evolution", "random"), range(32, 320, 16)):
        widths = uniform_widths(model.anatomy, channels * 48, round_to=8)
        add_search(repository, tuple(widths), 0.1, method=method, label=f"budget {channels}")


@settings(QUICK, max_examples=150)
@given(body=REQUESTS | REQUESTS | JSON_VALUES)
def test_any_json_body(client: TestClient, known: None, body: object) -> None:
    answer = client.post("/v1/plans", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code in {201, 404, 422}, answer.text
    if answer.is_success:
        assert isinstance(body, dict)
        document = answer.json()
        assert document["achieved"]["sparsity"][document["target"]["scope"]] >= body["sparsity"] - 1e-9
    else:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["rule"]


@settings(QUICK, max_examples=40)
@given(body=st.binary(max_size=60), content_type=st.text(string.printable.strip(), max_size=30))
def test_any_bytes_of_any_type(client: TestClient, body: bytes, content_type: str) -> None:
    assert client.post("/v1/plans", content=body, headers={"Content-Type": content_type}).status_code in {415, 422}
    assert client.post("/v1/plans", content=body, headers={"Content-Type": "application/json"}).status_code == 422


@pytest.mark.parametrize(
    "prefix", ["/v1/plans/", "/v1/models/", "/v1/rankings/", "/v1/predictors/", "/v1/models?limit=", "/v1/"]
)
@settings(QUICK, max_examples=15)
@given(octets=st.binary(min_size=1, max_size=20))
def test_any_path(client: TestClient, prefix: str, octets: bytes) -> None:
    answer = client.get(prefix + "".join(f"%{octet:02x}" for octet in octets))
    assert answer.status_code in {200, 404, 422}, answer.text
