"""The parts of the OpenAPI document that endpoints share: error answers and their examples."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from pruning.planning.plan import PruningPlan
from service.jobs.responses import JobEventData
from service.problems import MEDIA_TYPE
from service.schemas import Problem

_DESCRIPTIONS = {
    401: "The server has keys, and the request has none, or one that is unknown, expired or revoked.",
    403: "The request's key may not do this: `needs` is the scope that may.",
    404: "Nothing is registered under an id that the request names.",
    406: "The request accepts no form that the plan has: `remedy` says what to ask for.",
    409: "The stored data contradicts the request, or the state of a job does.",
    429: "The key's limit of requests is reached: see Retry-After.",
    408: "The request body does not go on.",
    413: "The request body is too large.",
    415: "The request body is not declared as JSON, or is compressed.",
    421: "The request is for a host by whose name the server is not asked: see LOP_ALLOWED_HOSTS.",
    422: "The request breaks a rule, or its target cannot be met: `nearest` is then the closest feasible value, and of "
    "a budget `binding` the limit that is exceeded most, `nearest_values` the closest feasible value of each limit; "
    "`spaces` says the same of each space.",
    503: "The database or the data store does not answer, is not at the revision of this code, or holds a predictor "
    "that cannot be read.",
}

PLAN_V1_EXAMPLE: dict[str, Any] = {
    "schema_version": 1,
    "plan_id": "0123456789abcdef01234567",
    "method": "uniform",
    "created_at": "2026-01-31T12:00:00Z",
    "model": {
        "id": "llava-reference",
        "fingerprint": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "weights_sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    },
    "target": {
        "sparsity": None,
        "scope": "ffn",
        "budget": {
            "memory_bytes": 5000000,
            "latency_ms": None,
            "flops": None,
            "disk_bytes": None,
            "batch": 1,
            "prompt_tokens": 1024,
            "output_tokens": 128,
        },
        "device": "l4",
        "round_to": 8,
        "tp_size": 1,
    },
    "layers": [
        {"index": 0, "ffn_width": 128, "num_kv_groups": 2, "num_heads": 4, "weight_bits": None, "skip": []},
        {"index": 1, "ffn_width": 128, "num_kv_groups": 2, "num_heads": 4, "weight_bits": None, "skip": []},
    ],
    "ranking": {
        "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "url": "/v1/models/llava-reference/ranking",
    },
    "achieved": {
        "sparsity": {"ffn": 0.5, "decoder": 0.3, "model": 0.2},
        "parameters": 400000,
        "disk_bytes": 1601024,
        "memory_bytes": 4745728,
        "kv_cache_bytes": 1179648,
        "activation_bytes": 1966080,
        "flops": 1000000000,
        "latency_ms": 2.5,
        "prefill_ms": 0.5,
        "decode_ms_per_token": 0.0157,
        "latency_source": "roofline",
        "workload": {"batch": 1, "prompt_tokens": 1024, "output_tokens": 128},
    },
    "predicted": None,
    "provenance": {
        "predictor": None,
        "samples": 0,
        "calibration": None,
        "seed": None,
        "note": "FFN widths are multiples of 8; lop: no predictor is trained for this model; "
        "mcts: no search is finished within one level step of this target; "
        "additive-dp: no complete one-layer sensitivity scan is stored; "
        "latency: estimated, not measured: roofline of NVIDIA L4",
    },
}

PLAN_EXAMPLE: dict[str, Any] = PLAN_V1_EXAMPLE | {
    "schema_version": 2,
    "target": PLAN_V1_EXAMPLE["target"] | {"space": ["ffn"], "recovery": None},
    "layers": [{"index": 0, "ffn": {"units": 128}}, {"index": 1, "ffn": {"units": 128}}],
    "recovery": [],
    "achieved": {"removed": {"ffn": 0.5, "decoder": 0.3, "model": 0.2}, "zeroed": {}}
    | {name: value for name, value in PLAN_V1_EXAMPLE["achieved"].items() if name != "sparsity"},
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of an endpoint that can answer these error statuses."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": _DESCRIPTIONS[status], "content": content} for status in statuses}


def _need_keys(schema: dict[str, Any]) -> None:
    """Say of every path but those about health that a key is needed, if the server has keys, and what is said then; of
    all of them, what is said to a request for another host."""
    scheme = {"type": "http", "scheme": "bearer", "description": "A key of `lop key create`, once the server has any."}
    schema["components"]["securitySchemes"] = {"key": scheme}
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            operation["responses"].update({str(number): answer for number, answer in problems(421).items()})
            if not path.startswith("/v1/"):
                continue
            operation["security"] = [{"key": []}, {}]
            for number, response in problems(401, 403, 429).items():
                operation["responses"][str(number)] = response


def _say_event_data(schema: dict[str, Any]) -> None:
    """What the text of an event's data is, in the words of JSON Schema for text that holds JSON."""
    data = {"contentMediaType": "application/json", "contentSchema": {"$ref": "#/components/schemas/JobEventData"}}
    for operations in schema["paths"].values():
        for operation in operations.values():
            for response in operation["responses"].values():
                stream = response.get("content", {}).get("text/event-stream")
                if stream is not None:
                    stream["itemSchema"]["properties"]["data"].update(data)


def _no_null_parameters(schema: dict[str, Any]) -> None:
    """A parameter that is not given is left out: in a path, a query or a header there is no null."""
    for operations in schema["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                said = parameter["schema"]
                options = [option for option in said.get("anyOf", ()) if option != {"type": "null"}]
                if len(options) == 1:
                    del said["anyOf"]
                    said.update(options[0])


def install_openapi(app: FastAPI) -> None:
    """Let the document of `app` hold the Problem schema, those of plan schema 2 and what a job's events say, which
    no endpoint returns as its model."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes, tags=None
            )
            components = schema.setdefault("components", {}).setdefault("schemas", {})
            for model in (Problem, PruningPlan, JobEventData):
                said = model.model_json_schema(mode="serialization", ref_template="#/components/schemas/{model}")
                for name, part in (*said.pop("$defs").items(), (model.__name__, said)):
                    components.setdefault(name, part)
            _say_event_data(schema)
            _need_keys(schema)
            _no_null_parameters(schema)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
