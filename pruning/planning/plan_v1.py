"""Plans of schema 1: read for ever, and handed out to clients that know nothing newer. A frozen schema.

It lists what every layer keeps, so a plan by itself does not say what is dense. Of its axes, servers only ever changed
`ffn_width`; `skip` and `weight_bits` were places kept for later.
"""

import operator
from datetime import datetime
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from pruning.planning.plan_parts import SHA256, Part, PlanModel, broken_field, is_none
from pruning.planning.scope import Scope
from pruning.planning.workload import Budget, Workload

_MEASURED_ON_VALIDATION = "the predicted KL was measured on validation data"
"""In the note of a plan of schema 1: the only place where it says that a quality was measured on unseen data."""

_FILLED_UP = "searched for another target and filled up to this one"
"""Likewise, that its channels are not those of the search."""


class TargetV1(Part):
    """What was asked for: a sparsity of a scope, or a budget, whose memory is at most that of the device.

    `round_to` and `tp_size` are what divides the widths; None in plans from before they were recorded.
    """

    sparsity: float | None = Field(default=None, ge=0, lt=1)
    scope: Scope = Scope.FFN
    budget: Budget | None = None
    device: str | None = None
    round_to: int | None = Field(default=None, ge=1, exclude_if=is_none)
    tp_size: int | None = Field(default=None, ge=1, exclude_if=is_none)


class LayerV1(Part):
    """What one decoder layer keeps: FFN channels, KV groups and all their query heads.

    `skip` lists sub-layers removed whole, of which nothing is kept then; `weight_bits` is None while weights keep their
    dtype.
    """

    index: int = Field(ge=0)
    ffn_width: int = Field(ge=0)
    num_kv_groups: int = Field(ge=0)
    num_heads: int = Field(ge=0)
    weight_bits: int | None = Field(default=None, ge=1, le=16)
    skip: tuple[Literal["ffn", "attention"], ...] = ()

    @model_validator(mode="after")
    def _says_one_thing(self) -> "LayerV1":
        if ("ffn" in self.skip) != (self.ffn_width == 0):
            raise ValueError(f"an FFN is skipped if, and only if, it keeps no channels, not {self.ffn_width}")
        if ("attention" in self.skip) != (self.num_kv_groups == 0):
            raise ValueError(f"attention is skipped if, and only if, it keeps no KV groups, not {self.num_kv_groups}")
        groups = max(self.num_kv_groups, 1)
        if self.num_heads % groups or (self.num_heads == 0) != (self.num_kv_groups == 0):
            raise ValueError(f"KV groups stay with all their heads, not {self.num_heads} for {self.num_kv_groups}")
        return self

    @property
    def heads_per_group(self) -> int | None:
        """Query heads that share a key head and a value head; None where attention is skipped."""
        return self.num_heads // self.num_kv_groups if self.num_kv_groups else None


class RankingV1(Part):
    """The ranking file that says which channels are kept: its sha256, and where the server offers it.

    `compensates` says that the file holds channel means: every down projection that is cut gets a bias for what it
    loses, and the plan's costs count it. It is written only where it is true, as in plans from before there was one.
    """

    sha256: str = Field(pattern=SHA256)
    url: str | None = None
    compensates: bool = Field(default=False, exclude_if=operator.not_)


class CostsV1(Part):
    """What both schemas say of costs; see `pruning.planning.plan.Achieved`."""

    parameters: int
    disk_bytes: int
    memory_bytes: int
    kv_cache_bytes: int
    activation_bytes: int | None = Field(default=None, exclude_if=is_none)
    flops: int
    latency_ms: float | None = None
    prefill_ms: float | None = Field(default=None, exclude_if=is_none)
    decode_ms_per_token: float | None = Field(default=None, exclude_if=is_none)
    latency_source: Literal["measured", "roofline"] | None = Field(default=None, exclude_if=is_none)
    workload: Workload = Workload()


class _SparsityV1(Part):
    sparsity: dict[Scope, float]


class AchievedV1(CostsV1, _SparsityV1):  # in documents, fields of the last base stand first
    """Exact costs of the pruned model; see `pruning.planning.plan.Achieved`. `sparsity` is what it calls `removed`."""


class PredictedV1(Part):
    """The quality to expect; see `pruning.planning.plan.Predicted`. On calibration answers, unless the provenance's
    note names validation data."""

    quality: float
    interval: tuple[float, float] | None = None
    metric: Literal["kl"] = "kl"
    accuracy: float | None = Field(default=None, exclude_if=is_none)
    accuracy_interval: tuple[float, float] | None = Field(default=None, exclude_if=is_none)
    agreement: float | None = Field(default=None, exclude_if=is_none)
    agreement_interval: tuple[float, float] | None = Field(default=None, exclude_if=is_none)


class ProvenanceV1(Part):
    """Where the plan comes from."""

    predictor: str | None = None
    samples: int = Field(default=0, ge=0)
    calibration: str | None = None
    seed: int | None = None
    note: str | None = None


class PlanV1(Part):
    """A plan of schema 1."""

    schema_version: Literal[1] = 1
    plan_id: str
    method: str
    created_at: datetime
    model: PlanModel
    target: TargetV1
    layers: tuple[LayerV1, ...] = Field(min_length=1)
    ranking: RankingV1
    achieved: AchievedV1
    predicted: PredictedV1 | None = None
    provenance: ProvenanceV1 = ProvenanceV1()

    @field_validator("layers")
    @classmethod
    def _layers_in_order(cls, layers: tuple[LayerV1, ...]) -> tuple[LayerV1, ...]:
        indices = [layer.index for layer in layers]
        if indices != list(range(len(indices))):
            raise ValueError(f"layers must be numbered 0..{len(indices) - 1} in order, found {indices}")
        found = {layer.heads_per_group for layer in layers if layer.heads_per_group is not None}
        if len(found) > 1:
            raise ValueError(f"KV groups stay with all their heads, not with {sorted(found)} a group")
        return layers

    def to_json(self) -> str:
        """The plan as an indented JSON document."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "PlanV1":
        """Parse a document of schema 1; raises PlanError that names the first broken field."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise broken_field(error, 1) from error

    def upgraded(self) -> dict[str, Any]:
        """The same plan as a document of schema 2, under the same id. Pure: nothing but this plan is looked at.

        What is dense is not known, so both sub-layers of every layer are stated; which axes were allowed to change is
        not known either, and left out.
        """
        document = self.model_dump(mode="json")
        document["schema_version"] = 2
        document["layers"] = [_upgraded_layer(layer) for layer in self.layers]
        document["recovery"] = [{"kind": "bias"}] if document["ranking"].pop("compensates", False) else []
        document["achieved"]["removed"] = document["achieved"].pop("sparsity")
        if self.predicted is not None:
            unseen = _MEASURED_ON_VALIDATION in (self.provenance.note or "")
            document["predicted"]["of"] = "unseen" if unseen else "calibration"
        if _FILLED_UP in (self.provenance.note or ""):
            document["provenance"]["filled_up"] = True
        return document


def _upgraded_layer(layer: LayerV1) -> dict[str, Any]:
    kept = {"ffn": layer.ffn_width, "attention": layer.num_kv_groups}
    return {"index": layer.index} | {
        name: {"units": units, "bits": layer.weight_bits if units else None} for name, units in kept.items()
    }
