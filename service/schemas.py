"""What the HTTP API takes in and gives out. The plan itself is `pruning.planning.plan.PruningPlan`."""

from datetime import datetime
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pruning.allocators.methods import Family, Method, describe_methods
from pruning.devices.device import Device
from pruning.devices.profile import DeviceProfile
from pruning.errors import SpaceReach
from pruning.planning.axis_spaces import SpaceName
from pruning.planning.ffn_spaces import DEFAULT_ROUND_TO
from pruning.planning.scope import Scope
from pruning.planning.target import usual_scope
from pruning.planning.workload import Budget
from service.names import NAME_PATTERN
from storage.records import DatasetRecord, ModelRecord, PredictorRecord

ITEM = TypeVar("ITEM")

_Name = Annotated[str, Field(min_length=1, max_length=200, pattern=NAME_PATTERN)]

_SHA = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_CREATED = "2026-01-31T12:00:00Z"


class PlanRequest(BaseModel):
    """A pruning target for one model: a sparsity, or a hardware budget, or a device whose memory is the budget."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"model": "llava-reference", "sparsity": 0.4},
                {"model": "llava-reference", "sparsity": 0.2, "scope": "model", "device": "jetson-orin-nano-8gb"},
                {"model": "llava-reference", "sparsity": 0.5, "round_to": 16, "method": "flap"},
                {
                    "model": "llava-reference",
                    "budget": {"memory_bytes": 20000000, "latency_ms": 200.0, "batch": 1, "prompt_tokens": 512},
                    "device": "jetson-orin-nano-8gb",
                    "tp_size": 2,
                },
                {"model": "llava-reference", "device": "jetson-orin-nano-8gb"},
                {"model": "llava-reference", "sparsity": 0.4, "space": "all"},
            ]
        },
    )

    model: _Name = Field(description="Id of a registered model.")
    sparsity: float | None = Field(
        default=None,
        strict=True,
        ge=0,
        lt=1,
        allow_inf_nan=False,
        description="Fraction of the scope to remove: at least this much.",
    )
    budget: Budget | None = Field(
        default=None,
        description="Instead of a sparsity: what the model may cost at most, all of it at once, for a batch of prompts "
        "of `prompt_tokens` that are answered with `output_tokens` each. `memory_bytes` are weights, KV cache and a "
        "bound on activations; `latency_ms` is the whole request's on `device`; `flops` those of decoder and head; "
        "`disk_bytes` the weight files; `gguf_bytes` the tensors of the GGUF file that `lop export gguf` writes, where "
        "matrices that keep their dtype are stored as `gguf_type` (f16 if nothing is said).",
    )
    space: SpaceName = Field(
        default=SpaceName.FFN,
        description="What may be changed: `ffn` widths, `attention` (KV groups with all their query heads, down to "
        "none), whole `layers`, or `all` of that; the `bits` of each sub-layer's weights (8, 4, or as they are, for a "
        "budget), or `all,bits`: both at once; the `density` of each sub-layer's weights, of which single ones are "
        "zeroed: then a sparsity is the share of those of all sub-layers that is, and nothing becomes cheaper.",
    )
    scope: Scope = Field(
        default=Scope.FFN,
        description="Which parameters the sparsity is a fraction of; in other spaces than `ffn` it is `decoder` by "
        "default, and cannot be `ffn`.",
    )
    device: _Name | None = Field(
        default=None,
        description="Id from /v1/devices. It prices the plan's latency. With a budget, its memory is a limit too; "
        "without sparsity and budget, the only one. With a sparsity, the plan's note says so if it does not fit.",
    )
    round_to: int = Field(
        default=DEFAULT_ROUND_TO, strict=True, ge=1, le=65536, description="Widths are multiples of this, or dense."
    )
    tp_size: int = Field(
        default=1,
        strict=True,
        ge=1,
        le=1024,
        description="Devices that tensor parallelism divides each layer among: it divides every width. Costs are of "
        "the whole model.",
    )
    method: Method | None = Field(default=None, description=describe_methods())
    after_recovery: bool = Field(
        default=False,
        strict=True,
        description="The plan that was best once it was trained (`lop search --after-recovery`): it counts on that "
        "training, and its quality is of the trained model. Of searched methods only; schema 2.",
    )

    @model_validator(mode="after")
    def _asks_for_one_thing(self) -> "PlanRequest":
        if self.sparsity is not None and self.budget is not None:
            raise ValueError("ask for a sparsity or for a budget, not for both")
        if self.sparsity is None and self.budget is None and self.device is None:
            raise ValueError("ask for a sparsity, for a budget, or name a device whose memory is the budget")
        if self.sparsity is None and self.scope is not Scope.FFN:
            raise ValueError("scope says what a sparsity counts: give one, or leave it out")
        if self.budget is not None and self.device is None:
            if self.budget.latency_ms is not None:
                raise ValueError("latency_ms is a device's: name one, see GET /v1/devices")
            if not self.budget.limits:
                raise ValueError(
                    "a budget limits something: give memory_bytes, flops, disk_bytes or gguf_bytes, or name a device"
                )
        if self.space.has_density and self.sparsity is None:
            raise ValueError(
                "zeroed weights make nothing cheaper, so no budget asks for them: give a sparsity, or another space"
            )
        if self.space.has_density and self.counted is not Scope.DECODER:
            raise ValueError("a sparsity in the space density is of the weights of all sub-layers: leave scope out")
        if self.after_recovery and self.method is not None and self.method.family is not Family.SEARCH:
            raise ValueError("plans for after recovery are those of searches: leave method out, or name a searched one")
        return self

    @property
    def counted(self) -> Scope:
        """What the sparsity is a fraction of: where more than FFN widths may change, the decoder if nothing is said."""
        said = self.space is SpaceName.FFN or self.sparsity is None or "scope" in self.model_fields_set
        return self.scope if said else usual_scope(self.space)


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
                    "kv_groups": [4, 4],
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
    kv_groups: list[int] = Field(description="KV groups of each decoder layer of the dense model.")
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
            kv_groups=[layer.num_kv_groups for layer in anatomy.layers],
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
    """A piece of hardware: of the catalogue, or one that was measured."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "l4",
                    "name": "NVIDIA L4",
                    "memory_bytes": 25769803776,
                    "flops_per_s": {"F32": 30.3e12, "F16": 121e12, "BF16": 121e12},
                    "bandwidth_bytes_per_s": 300e9,
                    "measured": False,
                    "source": "NVIDIA L4 Tensor Core GPU data sheet",
                }
            ]
        }
    )

    id: str
    name: str
    memory_bytes: int
    flops_per_s: dict[str, float] = Field(
        description="Dense matrix products by dtype: the data sheet's peak, or what was measured."
    )
    bandwidth_bytes_per_s: float = Field(description="Of the memory: the data sheet's peak, or what was measured.")
    measured: bool = Field(
        description="Registered with POST /v1/devices: latencies come from its tables where they cover a request."
    )
    source: str = Field(description="Where the figures come from.")

    @classmethod
    def of(cls, device: Device) -> Self:
        return cls(
            id=device.id,
            name=device.name,
            memory_bytes=device.memory_bytes,
            flops_per_s=dict(device.peak_flops_per_s),
            bandwidth_bytes_per_s=device.bandwidth_bytes_per_s,
            measured=device.is_measured,
            source=device.source,
        )


class DeviceDetails(DeviceResponse):
    """A piece of hardware with all that was measured of it."""

    profile: DeviceProfile | None = Field(default=None, description="What was registered; null for the catalogue's.")

    @classmethod
    def of(cls, device: Device) -> Self:
        return cls(**DeviceResponse.of(device).model_dump(), profile=device.profile)


class DatasetResponse(BaseModel):
    """Conversations that were handed in. Jobs name them by `id`, the sha256 of their content."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": _SHA,
                    "name": "calibration",
                    "conversations": 128,
                    "answers": 1280,
                    "pictures": 128,
                    "size_bytes": 4000000,
                    "added_by": "notebook",
                    "created_at": _CREATED,
                }
            ]
        }
    )

    id: str
    name: str
    conversations: int
    answers: int
    pictures: int = Field(description="Each counted once.")
    size_bytes: int = Field(description="As it is stored.")
    added_by: str = Field(description="The name of the key that it came with, or where it came from.")
    created_at: datetime

    @classmethod
    def of(cls, record: DatasetRecord) -> Self:
        return cls(
            id=record.id,
            name=record.name,
            conversations=record.num_conversations,
            answers=record.num_answers,
            pictures=record.num_pictures,
            size_bytes=record.size_bytes,
            added_by=record.added_by,
            created_at=record.created_at,
        )


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
    degraded: dict[str, str] | None = Field(
        default=None,
        description="What does not work, and why, though what is stored is answered.",
        exclude_if=lambda value: value is None,
    )


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
                },
                {
                    "type": "urn:lop:infeasible-target",
                    "title": "The target cannot be met",
                    "status": 422,
                    "detail": "the smallest plan needs memory_bytes = 3200000 (got memory_bytes=1000000). "
                    "Ask for at least memory_bytes=3200000",
                    "instance": "/v1/plans",
                    "rule": "the smallest plan needs memory_bytes = 3200000",
                    "values": "memory_bytes=1000000",
                    "remedy": "Ask for at least memory_bytes=3200000",
                    "nearest": 3200000.0,
                    "binding": "memory_bytes",
                    "nearest_values": {"memory_bytes": 3200000.0, "flops": 2000000000.0},
                    "spaces": {
                        "ffn": {
                            "reaches": False,
                            "nearest": 3200000.0,
                            "binding": "memory_bytes",
                            "nearest_values": {"memory_bytes": 3200000.0, "flops": 2000000000.0},
                        },
                        "all": {"reaches": True, "nearest": None, "binding": None, "nearest_values": None},
                    },
                },
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
    not_ready: dict[str, str] | None = Field(default=None, description="Of /readyz: what does not work, and why.")
    needs: str | None = Field(default=None, description="The scope of a key that may do what this one may not.")
    binding: str | None = Field(default=None, description="The limit that an infeasible budget exceeds most.")
    nearest_values: dict[str, int | float] | None = Field(
        default=None, description="Closest feasible value of every limit of an infeasible budget, `binding` included."
    )
    spaces: dict[str, SpaceReach] | None = Field(
        default=None,
        description="What each space can do of an infeasible target, by its name, the one that was asked for included: "
        "`reaches` it, or its own `nearest`, `binding` and `nearest_values`.",
    )
