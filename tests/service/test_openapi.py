import re
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import BaseModel

from pruning.devices.profile import DeviceProfile
from pruning.planning.plan import PruningPlan
from service import schemas
from service.jobs.responses import JobEventData, JobResponse
from service.jobs.settings import ApplyJob, MeasureJob, RecoverJob, RegisterJob, SearchJob, TrainJob
from service.openapi import PLAN_EXAMPLE


@pytest.fixture
def document(client: TestClient) -> dict[str, Any]:
    answer = client.get("/openapi.json")
    assert answer.status_code == 200
    result: dict[str, Any] = answer.json()
    return result


def references(node: object) -> set[str]:
    """Every $ref in a document."""
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*(references(value) for value in node.values()))
    return set().union(*(references(value) for value in node)) if isinstance(node, list) else set()


def test_the_paths(document: dict[str, Any]) -> None:
    assert {path: sorted(operations) for path, operations in document["paths"].items()} == {
        "/v1/plans": ["post"],
        "/v1/plans/{plan_id}": ["get"],
        "/v1/models": ["get"],
        "/v1/models/{model_id}": ["get"],
        "/v1/models/{model_id}/ranking": ["get"],
        "/v1/rankings/{sha256}": ["get"],
        "/v1/predictors": ["get"],
        "/v1/predictors/{predictor_id}": ["get"],
        "/v1/devices": ["get", "post"],
        "/v1/devices/{device_id}": ["get"],
        "/v1/datasets": ["get", "post"],
        "/v1/datasets/{dataset_id}": ["get"],
        "/v1/jobs": ["get", "post"],
        "/v1/jobs/{job_id}": ["delete", "get"],
        "/v1/jobs/{job_id}/retry": ["post"],
        "/v1/jobs/{job_id}/events": ["get"],
        "/healthz": ["get"],
        "/readyz": ["get"],
    }


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = references(document)
    assert "#/components/schemas/Problem" in found
    assert {name.removeprefix("#/components/schemas/") for name in found} <= set(document["components"]["schemas"])


def test_every_error_is_a_problem(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    assert list(response["content"]) == ["application/problem+json"], (path, status)


def has_example(document: dict[str, Any], content: dict[str, Any]) -> bool:
    schema = content.get("schema", {})
    if "example" in content or "examples" in schema or schema.get("format") == "binary":
        return True
    if "oneOf" in schema:
        return all(has_example(document, {"schema": kind}) for kind in schema["oneOf"])
    if "$ref" in schema:
        return has_example(document, {"schema": document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]})
    items = schema.get("properties", {}).get("items")
    return items is not None and has_example(document, {"schema": items["items"]})


def test_every_request_and_response_has_an_example(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            bodies = [*operation["responses"].values(), operation.get("requestBody", {})]
            for body in bodies:
                for content in body.get("content", {}).values():
                    assert has_example(document, content), path


@pytest.mark.parametrize(
    "model",
    [
        schemas.PlanRequest,
        schemas.ModelResponse,
        schemas.PredictorResponse,
        schemas.DeviceResponse,
        schemas.DeviceDetails,
        DeviceProfile,
        schemas.DatasetResponse,
        RegisterJob,
        MeasureJob,
        SearchJob,
        TrainJob,
        ApplyJob,
        RecoverJob,
        JobResponse,
        schemas.Liveness,
        schemas.Readiness,
        schemas.Problem,
    ],
)
def test_examples_are_valid(model: type[BaseModel]) -> None:
    examples = model.model_json_schema()["examples"]
    assert examples
    for example in examples:
        assert model.model_validate(example).model_dump(mode="json", exclude_unset=True) == example


def test_what_events_say_is_said(document: dict[str, Any]) -> None:
    content = document["paths"]["/v1/jobs/{job_id}/events"]["get"]["responses"]["200"]["content"]["text/event-stream"]
    data = content["itemSchema"]["properties"]["data"]["contentSchema"]["$ref"]
    assert set(document["components"]["schemas"][data.rpartition("/")[2]]["properties"]) == {*JobEventData.model_fields}
    [line] = re.findall(r"^data: (.*)$", content["example"], re.MULTILINE)
    assert JobEventData.model_validate_json(line).model_dump_json() == line


def test_every_path_but_those_of_health_says_that_it_takes_a_key(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            says = {"401", "403", "429"} <= set(operation["responses"]) and operation.get("security") == [
                {"key": []},
                {},
            ]
            assert says == path.startswith("/v1/"), path


def test_no_parameter_is_null(document: dict[str, Any]) -> None:
    parameters = {
        (path, parameter["name"]): parameter["schema"]
        for path, operations in document["paths"].items()
        for operation in operations.values()
        for parameter in operation.get("parameters", ())
    }
    assert not [place for place, schema in parameters.items() if "null" in str(schema)]
    last = parameters["/v1/jobs/{job_id}/events", "last-event-id"]
    assert (last["type"], last["minimum"], last["maximum"]) == ("integer", 0, 2**62)


def test_the_plan_example_is_a_plan() -> None:
    assert PruningPlan.model_validate(PLAN_EXAMPLE).model_dump(mode="json") == PLAN_EXAMPLE
