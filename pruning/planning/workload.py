"""What a model is asked to do, and what it may cost while it does: part of every request and every plan."""

from typing import Annotated

from pydantic import Field

from pruning.planning.plan_parts import INT64_MAX, Part

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
    def limits(self) -> dict[str, float]:
        """What is limited, by name: every field but those of the workload. `Achieved` has fields of the same names."""
        named = {name: getattr(self, name) for name in type(self).model_fields if name not in Workload.model_fields}
        return {name: limit for name, limit in named.items() if limit is not None}
