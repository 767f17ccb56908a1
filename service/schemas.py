"""What the HTTP API takes in and gives out. The plan itself is `pruning.plan.PruningPlan`."""

from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from pruning.devices import Device
from pruning.levels import DEFAULT_ROUND_TO
from pruning.target import Scope
from service.methods.names import Method
from storage.records import ModelRecord, PredictorRecord

ITEM = TypeVar("ITEM")

# Control characters name nothing, and PostgreSQL cannot store a NUL.
NAME_PATTERN = r"^[^\x00-\x1f\x7f]+$"
_Name = Annotated[str, Field(min_length=1, max_length=200, pattern=NAME_PATTERN)]

_SHA = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_CREATED = "2026-01-31T12:00:00Z"


class PlanRequest(BaseModel):
    """A pruning target for one model."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"model": "llava-reference", "sparsity": 0.4},
                {"model": "llava-reference", "sparsity": 0.2, "scope": "model", "device": "jetson-orin-nano-8gb"},
                {"model": "llava-reference", "sparsity": 0.5, "round_to": 16, "method": "flap"},
            ]
        },
    )

    model: _Name = Field(description="Id of a registered model.")
    sparsity: float = Field(
        strict=True, ge=0, lt=1, allow_inf_nan=False, description="Fraction of the scope to remove: at least this much."
    )
    scope: Scope = Field(default=Scope.FFN, description="Which parameters the sparsity is a fraction of.")
    device: _Name | None = Field(
        default=None, description="Id from /v1/devices: recorded in the plan, whose note says so if it does not fit."
    )
    round_to: int = Field(
        default=DEFAULT_ROUND_TO, strict=True, ge=1, le=65536, description="Widths are multiples of this, or dense."
    )
    method: Method | None = Field(
        default=None,
        description="By default the best that the stored data allows of `lop`, `mcts` (if a search is finished within "
        "one level step of the target), `additive-dp` and `uniform`. "
        "`wanda-sp`, `flap`, `llm-pruner`, `owl`, `ecoflap` and `shortgpt` need statistics of the model "
        "(`lop model measure`); `mcts`, `evolution` and `random` a finished search near the target "
        "(`lop search --method`).",
    )


class RankingLink(BaseModel):
    """Where the ranking file is, and its sha256."""

    sha256: str
    url: str


class ModelParameters(BaseModel):
    """Parameter counts of the dense model, per scope."""

    ffn: int
    decoder: int
    model: int


class ModelResponse(BaseModel):
    """A registered model."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "llava-reference",
                    "model_type": "llava",
                    "text_model_type": "llama",
                    "fingerprint": _SHA,
                    "weights_sha256": _SHA,
                    "dtype": "F32",
                    "hidden_size": 128,
                    "ffn_widths": [256, 256],
                    "parameters": {"ffn": 196608, "decoder": 295424, "model": 500000},
                    "ranking": {"sha256": _SHA, "url": "/v1/models/llava-reference/ranking"},
                    "created_at": _CREATED,
                }
            ]
        }
    )

    id: str
    model_type: str
    text_model_type: str
    fingerprint: str
    weights_sha256: str
    dtype: str
    hidden_size: int
    ffn_widths: list[int] = Field(description="Dense FFN width of each decoder layer.")
    parameters: ModelParameters
    ranking: RankingLink
    created_at: datetime

    @classmethod
    def of(cls, record: ModelRecord, *, ranking_url: str) -> "ModelResponse":
        anatomy = record.anatomy
        return cls(
            id=record.id,
            model_type=anatomy.model_type,
            text_model_type=anatomy.text_model_type,
            fingerprint=anatomy.fingerprint,
            weights_sha256=record.weights_sha256,
            dtype=anatomy.dtype,
            hidden_size=anatomy.hidden_size,
            ffn_widths=[layer.ffn_width for layer in anatomy.layers],
            parameters=ModelParameters(
                ffn=anatomy.ffn_parameters, decoder=anatomy.decoder_parameters, model=anatomy.total_parameters
            ),
            ranking=RankingLink(sha256=record.ranking_sha256, url=ranking_url),
            created_at=record.created_at,
        )


class PredictorResponse(BaseModel):
    """A trained predictor. The newest one of a model answers its plan requests."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "3f1c9a",
                    "model": "llava-reference",
                    "weights_sha256": _SHA,
                    "config": {"num_levels": 8},
                    "created_at": _CREATED,
                }
            ]
        }
    )

    id: str
    model: str
    weights_sha256: str
    config: dict[str, Any]
    created_at: datetime

    @classmethod
    def of(cls, record: PredictorRecord) -> "PredictorResponse":
        return cls(
            id=record.id,
            model=record.model_id,
            weights_sha256=record.weights_sha256,
            config=record.config,
            created_at=record.created_at,
        )


class DeviceResponse(BaseModel):
    """A piece of hardware from the catalogue."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "jetson-orin-nano-8gb",
                    "name": "NVIDIA Jetson Orin Nano 8GB",
                    "memory_bytes": 8589934592,
                    "source": "https://developer.nvidia.com/embedded/jetson-modules",
                }
            ]
        }
    )

    id: str
    name: str
    memory_bytes: int
    source: str = Field(description="Where the figures come from.")

    @classmethod
    def of(cls, device: Device) -> "DeviceResponse":
        return cls(id=device.id, name=device.name, memory_bytes=device.memory_bytes, source=device.source)


class Page(BaseModel, Generic[ITEM]):
    """One page of a list: `items[offset : offset + limit]` of `total`; `next` is None on the last page."""

    items: list[ITEM]
    total: int
    limit: int
    offset: int
    next: str | None = Field(description="Path and query of the next page.")


class Liveness(BaseModel):
    """The process answers."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "alive"}]})

    status: Literal["alive"] = "alive"


class Readiness(BaseModel):
    """The database answers and is at the revision of this code."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "ready"}]})

    status: Literal["ready"] = "ready"


class Problem(BaseModel):
    """An error as application/problem+json (RFC 9457), with the rule, the values and the remedy apart.

    `type` is `urn:lop:<kind>`, or `about:blank` where the status says it all.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:lop:infeasible-target",
                    "title": "The target cannot be met",
                    "status": 422,
                    "detail": "sparsity of scope 'ffn' cannot exceed 0.96875 when each FFN keeps at least 8 channels "
                    "(got 0.99). Ask for at most 0.96875, or lower round_to",
                    "instance": "/v1/plans",
                    "rule": "sparsity of scope 'ffn' cannot exceed 0.96875 when each FFN keeps at least 8 channels",
                    "values": "0.99",
                    "remedy": "Ask for at most 0.96875, or lower round_to",
                    "nearest": 0.96875,
                }
            ]
        }
    )

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str
    rule: str
    values: str = ""
    remedy: str = ""
    nearest: float | None = Field(default=None, description="Closest feasible value, for an infeasible target.")
