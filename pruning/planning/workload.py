"""What a model is asked to do, and what it may cost while it does: part of every request and every plan."""

from typing import Annotated

from pydantic import Field, model_validator

from pruning.anatomy.gguf_types import TensorType
from pruning.planning.plan_parts import INT64_MAX, Part, is_none

_Count = Annotated[int, Field(strict=True, gt=0, le=INT64_MAX)]
# Beyond what models of today are served with, and small enough that a layer's nanoseconds fit 64 bits on any device.
_Batch = Annotated[int, Field(strict=True, ge=1, le=1024)]
_Prompt = Annotated[int, Field(strict=True, ge=1, le=2**20)]
_Output = Annotated[int, Field(strict=True, ge=0, le=2**20)]


class Workload(Part):
    """What a model is asked to do: `batch` prompts at once, `output_tokens` generated for each."""

    batch: _Batch = 1
    prompt_tokens: _Prompt = 1024
    output_tokens: _Output = 128


class Budget(Part):
    """Hard limits of a hardware budget and the workload they hold for (None: not limited).

    `latency_ms` is of the whole workload, on the device that the request names; see `Achieved` for the others.
    `gguf_type` is what matrices that keep their dtype are stored as where `gguf_bytes` are counted: None is f16.
    """

    memory_bytes: _Count | None = None
    latency_ms: Annotated[float, Field(strict=True, gt=0, le=INT64_MAX / 1e6)] | None = None
    flops: _Count | None = None
    disk_bytes: _Count | None = None
    gguf_bytes: _Count | None = Field(default=None, exclude_if=is_none)
    gguf_type: TensorType | None = Field(default=None, exclude_if=is_none)
    batch: _Batch = 1
    prompt_tokens: _Prompt = 1024
    output_tokens: _Output = 128

    @model_validator(mode="after")
    def _type_of_what_is_counted(self) -> "Budget":
        if self.gguf_type is not None and self.gguf_bytes is None:
            raise ValueError("gguf_type says how gguf_bytes are counted: give both, or leave it out")
        return self

    @property
    def gguf(self) -> TensorType | None:
        """What matrices of a GGUF file are stored as, if its bytes are limited."""
        return None if self.gguf_bytes is None else self.gguf_type or TensorType.F16

    @property
    def workload(self) -> Workload:
        return Workload(batch=self.batch, prompt_tokens=self.prompt_tokens, output_tokens=self.output_tokens)

    @property
    def limits(self) -> dict[str, float]:
        """What is limited, by name: every field but those of the workload and how bytes are counted. `Achieved` has
        fields of the same names."""
        others = (*Workload.model_fields, "gguf_type")
        named = {name: getattr(self, name) for name in type(self).model_fields if name not in others}
        return {name: limit for name, limit in named.items() if limit is not None}
