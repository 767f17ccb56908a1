"""The pruning plan: the public contract between the server, the client and every tool that applies it.

Schema 2. A plan says of each sub-layer that is not as in the dense model how many units it keeps, in how many bits and
how densely; the ranking that it names says which units. What is dense is absent, so a plan is read together with the
model that it is for: `PruningPlan.architecture`. Plans of schema 1 are read too (`pruning.planning.plan_v1`).
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, JsonValue, ValidationError, field_validator, model_validator

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.anatomy.decoder_layer import DecoderLayer
from pruning.errors import FingerprintMismatchError, PlanError
from pruning.planning.plan_parts import (
    FETCH_AGAIN,
    INT64_MAX,
    SHA256,
    Part,
    PlanModel,
    Provenance,
    broken_field,
    is_none,
)
from pruning.planning.plan_v1 import CostsV1, PlanV1, TargetV1
from pruning.planning.scope import Scope


def _says_nothing(value: object) -> bool:
    return not value


class Axis(StrEnum):
    """What of a decoder layer a plan may change: the units of one kind of sub-layer, or how all of its weights are
    stored. A sub-layer may lose all its units where `SKIP` is allowed, and one at least stays where it is not."""

    FFN = "ffn"
    ATTENTION = "attention"
    SKIP = "skip"
    BITS = "bits"
    DENSITY = "density"


class RecoveryStep(Part):
    """What is done after cutting, before the model is used.

    `bias`: every down projection that is cut gets a bias for what it loses, from the channel means in the ranking file.
    `reconstruction`: the projections out of what is cut are solved anew (`reconstruction_step`).
    `rounding`: weights in fewer bits are rounded on data (`rounding_step`); without it, to nearest.
    `distillation`: what is left is trained (`distillation_step`); several may follow one another.
    `settings` are a step's own, as canonical JSON: keys in order, absent where there are none.
    """

    kind: Literal["bias", "reconstruction", "rounding", "distillation"]
    settings: dict[str, JsonValue] = Field(default_factory=dict, exclude_if=_says_nothing)

    @field_validator("settings")
    @classmethod
    def _canonical(cls, settings: dict[str, JsonValue]) -> dict[str, JsonValue]:
        canonical: dict[str, JsonValue] = json.loads(json.dumps(settings, sort_keys=True))
        return canonical


BIAS = RecoveryStep(kind="bias")
RECONSTRUCTION: Final = "reconstruction"
ROUNDING: Final = "rounding"
DISTILLATION: Final = "distillation"
_DONE_AFTER = (BIAS.kind, RECONSTRUCTION, ROUNDING, DISTILLATION)


def reconstruction_step(calibration_id: str) -> RecoveryStep:
    """Projections out of what is cut are solved anew by least squares, from inputs on that calibration set."""
    return RecoveryStep(kind=RECONSTRUCTION, settings={"calibration": calibration_id})


def rounding_step(calibration_id: str) -> RecoveryStep:
    """Weights in fewer bits are rounded by GPTQ, from inputs on that calibration set."""
    return RecoveryStep(kind=ROUNDING, settings={"method": "gptq", "calibration": calibration_id})


def distillation_step(settings: dict[str, JsonValue]) -> RecoveryStep:
    """What is left was trained by a recipe on data, both of which `settings` name (the package `recovery`)."""
    return RecoveryStep(kind=DISTILLATION, settings=settings)


class PlanTarget(TargetV1):
    """What was asked for: a sparsity of a scope, or a budget, whose memory is at most that of the device.

    Attributes:
        round_to, tp_size: what divides the widths; None in plans from before they were recorded.
        space: the axes that were allowed to change; None in plans from before it was recorded.
        recovery: the steps after which the quality was to be best; None: none in particular.
    """

    space: tuple[Axis, ...] | None = Field(default=None, exclude_if=is_none)
    recovery: tuple[RecoveryStep, ...] | None = None


class Kept(Part):
    """What one sub-layer keeps.

    Attributes:
        units: FFN channels, or KV groups with all their query heads. 0: the sub-layer is skipped, its norm too.
        bits: of each weight; absent while weights keep their dtype.
        density: share of the weights that are not zero; absent while none are zeroed.
    """

    units: Annotated[int, Field(strict=True, ge=0, le=INT64_MAX)]
    bits: Annotated[int, Field(strict=True, ge=1, le=16)] | None = Field(default=None, exclude_if=is_none)
    density: Annotated[float, Field(strict=True, gt=0, lt=1)] | None = Field(default=None, exclude_if=is_none)

    @model_validator(mode="after")
    def _nothing_of_what_is_skipped(self) -> "Kept":
        if self.units == 0 and (self.bits, self.density) != (None, None):
            raise ValueError("a sub-layer that is skipped has neither bits nor a density")
        return self


class PlanLayer(Part):
    """What one decoder layer keeps; a sub-layer that is absent is as in the dense model."""

    index: Annotated[int, Field(strict=True, ge=0)]
    ffn: Kept | None = Field(default=None, exclude_if=is_none)
    attention: Kept | None = Field(default=None, exclude_if=is_none)

    @model_validator(mode="after")
    def _says_something(self) -> "PlanLayer":
        if self.ffn is None and self.attention is None:
            raise ValueError("a layer that is dense is left out, and another one says what its FFN or attention keeps")
        return self


class PlanRanking(Part):
    """The ranking file that says which units are kept: its sha256, and where the server offers it."""

    sha256: str = Field(pattern=SHA256)
    url: str | None = None


class _Removed(Part):
    removed: dict[Scope, float]
    zeroed: dict[Scope, float] = Field(default_factory=dict)
    gguf_bytes: int | None = Field(default=None, exclude_if=is_none)


class Achieved(CostsV1, _Removed):  # in documents, fields of the last base stand first
    """Exact costs of the pruned model.

    Attributes:
        removed: fraction of the parameters that is cut out, per scope.
        zeroed: fraction of the parameters that stays in the files as zeros, per scope; empty if there are none. Cutting
            saves memory and time everywhere, zeros only where a runtime knows how: the two are never added up.
        parameters: parameters of the whole model.
        disk_bytes: size of the weight files that `lop apply` (`prune_checkpoint`) writes, to the byte.
        gguf_bytes: tensors of the GGUF file that `lop export gguf` then writes of the language model, to the byte (all
            of it but vocabulary and other metadata), with the budget's `gguf_type`, or f16. None in plans that neither
            limit it nor have weights in fewer bits, and in those from before it was counted.
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


class Predicted(Part):
    """The quality to expect, where a method can say: KL to the dense model on answers, in nats.

    Intervals are meant to hold for nine plans in ten; how many they hold for, of `lop` and of other methods, is in
    docs/predictor.md.

    Attributes:
        of: which answers: those that were searched on, or some that nothing was chosen on.
        accuracy: share of answers that are exact; None where the dense model itself gives none exactly.
        agreement: share of answer tokens at which the pruned model's first choice is the dense model's; None in plans
            from before it was measured.
        rounding: how weights in fewer bits were rounded when it was measured; None where there are none, and in plans
            from before it was recorded, in which it was to nearest.
    """

    quality: float
    interval: tuple[float, float] | None = None
    metric: Literal["kl"] = "kl"
    of: Literal["unseen", "calibration"]
    accuracy: float | None = Field(default=None, exclude_if=is_none)
    accuracy_interval: tuple[float, float] | None = Field(default=None, exclude_if=is_none)
    agreement: float | None = Field(default=None, exclude_if=is_none)
    agreement_interval: tuple[float, float] | None = Field(default=None, exclude_if=is_none)
    rounding: Literal["rtn"] | None = Field(default=None, exclude_if=is_none)


class PruningPlan(Part):
    """A configuration made concrete. Immutable; `to_json` and `from_json` round-trip exactly.

    Canonical form: `layers` holds, in order, the layers that are not dense, and of each only the sub-layers that are
    not. Plans of schema 1 do not say what is dense: read without their model, they state every sub-layer.
    """

    schema_version: Literal[2] = 2
    plan_id: str
    method: str
    created_at: datetime
    model: PlanModel
    target: PlanTarget
    layers: tuple[PlanLayer, ...]
    ranking: PlanRanking
    recovery: tuple[RecoveryStep, ...] = ()
    achieved: Achieved
    predicted: Predicted | None = None
    provenance: Provenance = Provenance()

    @field_validator("layers")
    @classmethod
    def _layers_in_order(cls, layers: tuple[PlanLayer, ...]) -> tuple[PlanLayer, ...]:
        indices = [layer.index for layer in layers]
        if indices != sorted(set(indices)):
            raise ValueError(f"layers are in order, each once, found {indices}")
        return layers

    @property
    def compensates(self) -> bool:
        """Whether every down projection that is cut gets a bias for what it loses."""
        return BIAS in self.recovery

    @property
    def reconstructs(self) -> bool:
        """Whether the projections out of what is cut are solved anew."""
        return any(step.kind == RECONSTRUCTION for step in self.recovery)

    @property
    def rounds(self) -> bool:
        """Whether weights in fewer bits are rounded by GPTQ."""
        return any(step.kind == ROUNDING for step in self.recovery)

    @property
    def distils(self) -> bool:
        """Whether what is left is trained after cutting."""
        return any(step.kind == DISTILLATION for step in self.recovery)

    @property
    def planned_training(self) -> RecoveryStep | None:
        """The training that the plan was chosen for, as `lop search --after-recovery` did it; None: for none."""
        return next((step for step in self.target.recovery or () if step.kind == DISTILLATION), None)

    @property
    def untrained(self) -> "PruningPlan":
        """The plan as it is after cutting: its steps without trainings, which are done later if at all."""
        if not self.distils:
            return self
        return self.model_copy(update={"recovery": tuple(x for x in self.recovery if x.kind != DISTILLATION)})

    def recovered_by(self, step: RecoveryStep) -> "PruningPlan":
        """The plan after which `step` was done, too: in place of one of its kind. Steps are in the order in which they
        are done; one training may follow another.

        Raises PlanError if the plan counts on a step of that kind with other settings.
        """
        if step in self.recovery:
            return self
        if step.kind == DISTILLATION:
            return self.model_copy(update={"recovery": (*self.recovery, step)})
        own = next((x for x in self.recovery if x.kind == step.kind), None)
        if own is not None and own.settings and own != step:
            raise PlanError(
                f"a plan that counts on {step.kind} says with which settings",
                values=f"plan {own.settings}, asked for {step.settings}",
                remedy="Use the data that the plan names, or fetch a plan without that step",
            )
        steps = (*(x for x in self.recovery if x.kind != step.kind), step)
        return self.model_copy(update={"recovery": tuple(sorted(steps, key=lambda x: _DONE_AFTER.index(x.kind)))})

    @property
    def skips(self) -> bool:
        """Whether a sub-layer loses all its units."""
        return any(kept.units == 0 for x in self.layers for kept in (x.ffn, x.attention) if kept is not None)

    def architecture(self, anatomy: ModelAnatomy) -> Architecture:
        """What every site of the model that the plan was made for keeps.

        Raises:
            FingerprintMismatchError: `anatomy` is of another model.
            PlanError: the plan names a layer that the model does not have.
        """
        self.check_fingerprint(anatomy.fingerprint)
        return self.architecture_of(anatomy.layers)

    def architecture_of(self, dense: Sequence[DecoderLayer]) -> Architecture:
        """The same, given the dense model's decoder layers [L] alone: whose they are is not checked."""
        options = {}
        for layer in self.layers:
            if layer.index >= len(dense):
                raise PlanError(f"this model's layers are numbered 0..{len(dense) - 1}", values=f"layer {layer.index}")
            for sublayer, kept in ((Sublayer.FFN, layer.ffn), (Sublayer.ATTENTION, layer.attention)):
                if kept is None:
                    continue
                option = Option(kept.units, kept.bits, kept.density)
                if option != Option(dense[layer.index].units(sublayer)):
                    options[Site(layer.index, sublayer)] = option
        return Architecture.of(options)

    def ffn_widths(self, anatomy: ModelAnatomy) -> tuple[int, ...]:
        """FFN widths [L] of the model that the plan was made for; raises as `architecture`."""
        return anatomy.ffn_widths(self.architecture(anatomy))

    def without_dense(self, anatomy: ModelAnatomy) -> "PruningPlan":
        """The plan in its canonical form: what was read from schema 1 also states what is as in the dense model.

        Raises as `architecture`.
        """
        layers = tuple(PlanLayer.model_validate(layer) for layer in self.architecture(anatomy).document())
        return self.model_copy(update={"layers": layers})

    def check_fingerprint(self, fingerprint: str) -> None:
        """Raises FingerprintMismatchError unless the plan was made for the model with this fingerprint."""
        if self.model.fingerprint != fingerprint:
            raise FingerprintMismatchError(
                "a plan fits only the model that it was made for",
                values=f"plan for {self.model.id} {self.model.fingerprint[:12]}, model has {fingerprint[:12]}",
                remedy="Request a plan for this model, after registering it with `lop model add`",
            )

    def to_json(self) -> str:
        """The plan as an indented JSON document of schema 2."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "PruningPlan":
        """Parse a plan document of schema 1 or 2; raises PlanError that names the first broken field."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PlanError(f"not a valid pruning plan: document: {error}", remedy=FETCH_AGAIN) from error
        return cls.from_document(document)

    @classmethod
    def from_document(cls, document: object) -> "PruningPlan":
        """The plan of a parsed document of schema 1, which keeps its id, or 2; raises PlanError as `from_json` does."""
        found = document.get("schema_version") if isinstance(document, Mapping) else document
        version = found if type(found) is int and isinstance(document, Mapping) else None
        if version is None or version not in (1, 2):
            raise PlanError(
                "not a valid pruning plan: schema_version: this version reads plans of schema version 1 and 2",
                values=repr(found)[:80],
                remedy="Fetch the plan again with `lop plan`, or upgrade lop-service if the plan is from a newer one",
            )
        try:
            return cls.model_validate(PlanV1.model_validate(document).upgraded() if version == 1 else document)
        except ValidationError as error:
            raise broken_field(error, version) from error

    @classmethod
    def load(cls, path: str | Path) -> "PruningPlan":
        """Read a plan file; raises PlanError if it is missing or malformed."""
        try:
            text = Path(path).read_bytes()
        except OSError as error:
            raise PlanError("the plan file must be readable", values=f"{path}: {error.strerror}") from error
        return cls.from_json(text)
