"""Whatever is sent, the service answers with a plan or with a problem that is the sender's, never with a 5xx."""

import json
import string

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pruning.allocators.methods import Method
from pruning.planning.make_plan import exceeded_limits
from pruning.planning.plan import PruningPlan
from service.jobs.settings import KINDS
from service.keys import new_key
from storage.contract import Repository
from storage.records import KeyScope
from tests.service.made_up import add_all_but_a_predictor, widths_of
from tests.storage.examples import dataset

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(codec=None), max_size=10), inner, max_size=4)
    ),
    max_leaves=10,
)
# Of "tiny": between what its narrowest and its dense model cost, and far off.
LIMITS = {
    "memory_bytes": st.integers(40_000, 300_000),
    "latency_ms": st.floats(0.001, 0.2),
    "flops": st.integers(500_000, 100_000_000),
    "disk_bytes": st.integers(30_000, 110_000),
    "gguf_bytes": st.integers(10_000, 60_000),
}
WORKLOAD = {"batch": st.integers(1, 3), "prompt_tokens": st.integers(1, 60), "output_tokens": st.integers(0, 5)}
COUNTED = {"gguf_type": st.sampled_from(["f16", "q8_0"])}
BUDGETS = st.fixed_dictionaries({}, optional={**LIMITS, **WORKLOAD, **COUNTED})
ODD_BUDGETS = st.fixed_dictionaries(
    {},
    optional={name: usual | st.integers() | JSON_VALUES for name, usual in {**LIMITS, **WORKLOAD, **COUNTED}.items()},
)
DEVICES = st.sampled_from([None, "l4", "raspberry-pi-5-8gb"])
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
        "device": DEVICES | JSON_VALUES,
        "other": JSON_VALUES,
    },
)
BUDGET_REQUESTS = st.fixed_dictionaries(
    {"model": st.just("tiny"), "budget": BUDGETS | BUDGETS | ODD_BUDGETS, "device": DEVICES},
    optional={
        "round_to": st.sampled_from([1, 8, 24]) | st.integers(1, 300),
        "tp_size": st.sampled_from([1, 2, 4]) | st.integers(0, 9) | JSON_VALUES,
        "method": st.sampled_from([None, *Method]),
        "sparsity": st.none() | st.floats(0, 1),
    },
)
QUICK = settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture
def known(repository: Repository) -> None:
    """What every method needs, but for a predictor."""
    add_all_but_a_predictor(repository, repository.get_model("tiny"))


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


@settings(QUICK, max_examples=200)
@given(body=BUDGET_REQUESTS)
def test_any_budget(client: TestClient, known: None, body: dict[str, object]) -> None:
    asked = body["budget"]
    # Schema 1, which is handed out unasked, has no place for it.
    newer = isinstance(asked, dict) and asked.get("gguf_bytes") is not None
    accept = {"Accept": "application/vnd.lop.plan.v2+json"} if newer else {}
    headers = {"Content-Type": "application/json", **accept}
    answer = client.post("/v1/plans", content=json.dumps(body), headers=headers)
    assert answer.status_code in {201, 422}, answer.text
    if answer.is_success:
        plan = PruningPlan.from_json(answer.content)
        assert exceeded_limits(plan.target, plan.achieved) == []
        budget = body["budget"]
        assert isinstance(budget, dict)
        for name in LIMITS:
            if budget.get(name) is not None:
                assert getattr(plan.achieved, name) <= budget[name]
        assert {w % (plan.target.tp_size or 1) for w in widths_of(plan)} == {0}
        assert plan.target.tp_size == body.get("tp_size", 1)
    else:
        problem = answer.json()
        assert problem["rule"]
        assert ("nearest_values" in problem) == (problem["type"] == "urn:lop:infeasible-target")


# Mostly valid, so that the fuzz reaches the queue too.
SPARSITIES = st.lists(st.floats(0.05, 0.8), min_size=1, max_size=3, unique=True)
FIELDS = {
    "register": ("kind", "model", "dataset", "folder"),
    "measure": ("kind", "model", "dataset"),
    "train": ("kind", "model", "dataset", "space", "num_levels"),
    "apply": ("kind", "plan"),
    "recover": ("kind", "plan", "dataset", "recipe"),
    "search": ("kind", "model", "dataset", "sparsities", "space", "evaluations", "num_levels", "data"),
}
JOBS = st.fixed_dictionaries(
    {
        "kind": st.sampled_from([*KINDS, "search", "search"]) | JSON_VALUES,
        "model": st.just("tiny") | JSON_VALUES,
        "dataset": st.just("d" * 64) | JSON_VALUES,
        "sparsities": SPARSITIES | SPARSITIES | JSON_VALUES,
    },
    optional={
        "folder": st.sampled_from(["llava", "../x", "/etc"]) | st.text(st.characters(codec=None), max_size=20),
        "space": st.sampled_from(["ffn", "attention", "layers", "all"]) | JSON_VALUES,
        "evaluations": st.integers(1, 300) | JSON_VALUES,
        "num_levels": st.integers(2, 12) | JSON_VALUES,
        "plan": JSON_VALUES,
        "recipe": st.just({"mode": "lora"}) | JSON_VALUES,
        "data": JSON_VALUES,
    },
).map(lambda body: {k: v for k, v in body.items() if k in FIELDS.get(str(body["kind"]), body)})


@settings(QUICK, max_examples=150)
@given(body=JOBS | JOBS | JSON_VALUES, key=st.none() | st.text(string.printable, max_size=10))
def test_any_job(client: TestClient, repository: Repository, body: object, key: str | None) -> None:
    repository.add_dataset(dataset("d" * 64))
    headers = {"Content-Type": "application/json"} | ({} if key is None else {"Idempotency-Key": key.strip()})
    answer = client.post("/v1/jobs", content=json.dumps(body), headers=headers)
    assert answer.status_code in {200, 201, 404, 409, 422}, answer.text
    if not answer.is_success:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["rule"]
        return
    document = answer.json()
    assert document["settings"]["kind"] == document["kind"]
    assert client.get(f"/v1/jobs/{document['id']}").json() == document
    assert client.delete(f"/v1/jobs/{document['id']}").status_code == 200


@settings(QUICK, max_examples=60)
@given(
    body=st.binary(max_size=200),
    start=st.sampled_from([b"", b"PK\x03\x04", b"\x1f\x8b\x08\x00", b"BZh9", b"\xfd7zXZ\x00"]),
)
def test_any_archive(client: TestClient, body: bytes, start: bytes) -> None:
    answer = client.post("/v1/datasets", content=start + body, headers={"Content-Type": "application/zip"})
    assert answer.status_code == 422, answer.text
    assert answer.json()["rule"]


@settings(QUICK, max_examples=60)
@given(value=st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=80))
def test_any_key(client: TestClient, repository: Repository, value: str) -> None:
    if not repository.has_keys():
        repository.add_key(new_key("n", KeyScope.ADMIN)[0])
        ring = next(m.kwargs["ring"] for m in client.app.user_middleware if "ring" in m.kwargs)  # type: ignore[attr-defined]
        ring._open_until = 0.0
    answer = client.get("/v1/models", headers=[(b"Authorization", value.encode("latin-1"))])
    assert answer.status_code == 401
    assert answer.json()["type"] == "urn:lop:unauthorized"


@settings(QUICK, max_examples=40)
@given(body=st.binary(max_size=60), content_type=st.text(string.printable.strip(), max_size=30))
def test_any_bytes_of_any_type(client: TestClient, body: bytes, content_type: str) -> None:
    assert client.post("/v1/plans", content=body, headers={"Content-Type": content_type}).status_code in {415, 422}
    assert client.post("/v1/plans", content=body, headers={"Content-Type": "application/json"}).status_code == 422


@pytest.mark.parametrize(
    "prefix",
    [
        "/v1/plans/",
        "/v1/models/",
        "/v1/rankings/",
        "/v1/predictors/",
        "/v1/jobs/",
        "/v1/jobs?status=",
        "/v1/datasets/",
        "/v1/models?limit=",
        "/v1/",
    ],
)
@settings(QUICK, max_examples=15)
@given(octets=st.binary(min_size=1, max_size=20))
def test_any_path(client: TestClient, prefix: str, octets: bytes) -> None:
    answer = client.get(prefix + "".join(f"%{octet:02x}" for octet in octets))
    assert answer.status_code in {200, 404, 422}, answer.text
