"""The pruning plan: the public contract between the server, the client and every tool that applies it.

A plan says how many channels, KV groups and bits each layer keeps; the ranking it names says which ones.
Schema version 1 holds every axis; FFN widths and KV groups can be applied today, the others equal the dense model.
"""

import hashlib
import json
import operator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture
from pruning.errors import FingerprintMismatchError, PlanError
from pruning.planning.scope import Scope

SCHEMA_VERSION: Literal[1] = 1

_SHA256 = r"^[0-9a-f]{64}$"


def _is_none(value: object) -> bool:
    """What decides that a field is left out where it says nothing: plans from before there was one stay as they are."""
    return value is None


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PlanModel(_Part):
    """The model that a plan was made for.

    `weights_sha256` is of the weight files that were ranked (`pruning.checkpoints.headers.weights_sha256`): models of
    one shape share their fingerprint. None in plans from before it was recorded.
    """

    id: str
    fingerprint: str = Field(pattern=_SHA256)
    weights_sha256: str | None = Field(default=None, pattern=_SHA256, exclude_if=_is_none)


INT64_MAX = 2**63 - 1
_Count = Annotated[int, Field(strict=True, gt=0, le=INT64_MAX)]
# Beyond what models of today are served with, and small enough that a layer's nanoseconds fit 64 bits on any device.
_Batch = Annotated[int, Field(strict=True, ge=1, le=1024)]
_Prompt = Annotated[int, Field(strict=True, ge=1, le=2**20)]
_Output = Annotated[int, Field(strict=True, ge=0, le=2**20)]


class Workload(_Part):
    """What a model is asked to do: `batch` prompts at once, `output_tokens` generated for each."""

    batch: _Batch = 1
    prompt_tokens: _Prompt = 1024
    output_tokens: _Output = 128


class Budget(_Part):
    """Hard limits of a hardware budget and the workload they hold for (None: not limited).

    `latency_ms` is of the whole workload, on the device that the request names; see `Achieved` for the others.
    """

    memory_bytes: _Count | None = None
    latency_ms: Annotated[float, Field(strict=True, gt=0, le=INT64_MAX / 1e6)] | None = None
    flops: _Count | None = None
    disk_bytes: _Count | None = None
    batch: _Batch = 1
    prompt_tokens: _Prompt = 1024
    output_tokens: _Output = 128

    @property
    def workload(self) -> Workload:
        return Workload(batch=self.batch, prompt_tokens=self.prompt_tokens, output_tokens=self.output_tokens)

    @property
    def limits_nothing(self) -> bool:
        return all(x is None for x in (self.memory_bytes, self.latency_ms, self.flops, self.disk_bytes))


class PlanTarget(_Part):
    """What was asked for: a sparsity of a scope, or a budget, whose memory is at most that of the device.

    `round_to` and `tp_size` are what divides the widths; None in plans from before they were recorded.
    """

    sparsity: float | None = Field(default=None, ge=0, lt=1)
    scope: Scope = Scope.FFN
    budget: Budget | None = None
    device: str | None = None
    round_to: int | None = Field(default=None, ge=1, exclude_if=_is_none)
    tp_size: int | None = Field(default=None, ge=1, exclude_if=_is_none)


class PlanLayer(_Part):
    """What one decoder layer keeps.

    `skip` lists sub-layers removed whole ("ffn", "attention"); `weight_bits` is None while weights keep their dtype.
    """

    index: int = Field(ge=0)
    ffn_width: int = Field(ge=0)
    num_kv_groups: int = Field(ge=0)
    num_heads: int = Field(ge=0)
    weight_bits: int | None = Field(default=None, ge=1, le=16)
    skip: tuple[Literal["ffn", "attention"], ...] = ()


class PlanRanking(_Part):
    """The ranking file that says which channels are kept: its sha256, and where the server offers it.

    `compensates` says that the file holds channel means: every down projection that is cut gets a bias for what it
    loses, and the plan's costs count it. It is written only where it is true, as in plans from before there was one.
    """

    sha256: str = Field(pattern=_SHA256)
    url: str | None = None
    compensates: bool = Field(default=False, exclude_if=operator.not_)


class Achieved(_Part):
    """Exact costs of the pruned model.

    Attributes:
        sparsity: fraction removed, per scope.
        parameters: parameters of the whole model.
        disk_bytes: size of the weight files that `lop apply` (`prune_checkpoint`) writes, to the byte.
        memory_bytes: weights, KV cache and activations for `workload`. Plans without `activation_bytes` are from
            before those were counted.
        kv_cache_bytes: keys and values of all layers for `workload`.
        activation_bytes: the bound of `pruning.planning.activations`.
        flops: multiply-adds x 2 of the decoder and head for `workload`.
        latency_ms: of the whole `workload`, on the target's device; None if it names none.
        prefill_ms: its first part, from the prompt to the first token.
        decode_ms_per_token: each further token, at the mean length of the cache.
        latency_source: whether times come from measurements on the device or from its data sheet (a roofline).
    """

    sparsity: dict[Scope, float]
    parameters: int
    disk_bytes: int
    memory_bytes: int
    kv_cache_bytes: int
    activation_bytes: int | None = Field(default=None, exclude_if=_is_none)
    flops: int
    latency_ms: float | None = None
    prefill_ms: float | None = Field(default=None, exclude_if=_is_none)
    decode_ms_per_token: float | None = Field(default=None, exclude_if=_is_none)
    latency_source: Literal["measured", "roofline"] | None = Field(default=None, exclude_if=_is_none)
    workload: Workload = Workload()


class Predicted(_Part):
    """The quality to expect, where a method can say: KL to the dense model on answers, in nats.

    On calibration answers, unless the provenance's note names validation data. Intervals are meant to hold for nine
    plans in ten; how many they hold for, of `lop` and of other methods, is in docs/predictor.md.

    Attributes:
        accuracy: share of answers that are exact; None where the dense model itself gives none exactly.
        agreement: share of answer tokens at which the pruned model's first choice is the dense model's; None in plans
            from before it was measured.
    """

    quality: float
    interval: tuple[float, float] | None = None
    metric: Literal["kl"] = "kl"
    accuracy: float | None = Field(default=None, exclude_if=_is_none)
    accuracy_interval: tuple[float, float] | None = Field(default=None, exclude_if=_is_none)
    agreement: float | None = Field(default=None, exclude_if=_is_none)
    agreement_interval: tuple[float, float] | None = Field(default=None, exclude_if=_is_none)


class Provenance(_Part):
    """Where the plan comes from, enough to make it again."""

    predictor: str | None = None
    samples: int = Field(default=0, ge=0)
    calibration: str | None = None
    seed: int | None = None
    note: str | None = None


class PruningPlan(_Part):
    """A configuration made concrete. Immutable; `to_json` and `from_json` round-trip exactly."""

    schema_version: Literal[1] = SCHEMA_VERSION
    plan_id: str
    method: str
    created_at: datetime
    model: PlanModel
    target: PlanTarget
    layers: tuple[PlanLayer, ...] = Field(min_length=1)
    ranking: PlanRanking
    achieved: Achieved
    predicted: Predicted | None = None
    provenance: Provenance = Provenance()

    @model_validator(mode="after")
    def _layers_in_order(self) -> "PruningPlan":
        indices = [layer.index for layer in self.layers]
        if indices != list(range(len(indices))):
            raise ValueError(f"layers must be numbered 0..{len(indices) - 1} in order, found {indices}")
        return self

    @property
    def ffn_widths(self) -> list[int]:
        """FFN widths [L]."""
        return [layer.ffn_width for layer in self.layers]

    def architecture(self, anatomy: ModelAnatomy) -> Architecture:
        """How many channels and KV groups every layer keeps; raises PlanError if the model has fewer or more layers."""
        if len(self.layers) != anatomy.num_layers:
            raise PlanError(
                "a plan says what every layer keeps", values=f"{len(self.layers)} layers, model {anatomy.num_layers}"
            )
        return anatomy.architecture(self.ffn_widths, [layer.num_kv_groups for layer in self.layers])

    def check_fingerprint(self, fingerprint: str) -> None:
        """Raises FingerprintMismatchError unless the plan was made for the model with this fingerprint."""
        if self.model.fingerprint != fingerprint:
            raise FingerprintMismatchError(
                "a plan fits only the model that it was made for",
                values=f"plan for {self.model.id} {self.model.fingerprint[:12]}, model has {fingerprint[:12]}",
                remedy="Request a plan for this model, after registering it with `lop model add`",
            )

    def to_json(self) -> str:
        """The plan as an indented JSON document."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "PruningPlan":
        """Parse a plan document; raises PlanError that names the first broken field."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "document"
            raise PlanError(
                f"not a valid pruning plan of schema version {SCHEMA_VERSION}: {where}: {first['msg']}",
                values=repr(first.get("input"))[:80],
                remedy="Fetch the plan again with `lop plan`",
            ) from error

    @classmethod
    def load(cls, path: str | Path) -> "PruningPlan":
        """Read a plan file; raises PlanError if it is missing or malformed."""
        try:
            text = Path(path).read_bytes()
        except OSError as error:
            raise PlanError("the plan file must be readable", values=f"{path}: {error.strerror}") from error
        return cls.from_json(text)


def content_id(document: dict[str, Any]) -> str:
    """A stable id of a JSON document: the first 24 hex digits of the sha256 of its canonical form."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:24]
