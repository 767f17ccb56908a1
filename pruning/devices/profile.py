"""What was measured on one machine: the time of single decoder layers along ladders of FFN widths and of KV groups, and
the rest.

Tables are by shape, not by model: every model whose layers have the same shape and dtype is priced by the same table.
What is registered is checked, by the tables themselves and as a whole.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from pruning.devices.tables import (
    STORED,
    Count,
    Dtype,
    LayerShape,
    LayerTable,
    OutsideShape,
    OutsideTable,
    ProfilePart,
    invalid_profile,
)
from pruning.errors import InputError

MAX_TABLES = 64
MAX_TIMES = 2**16
"""Numbers in all tables of a profile together: 1,024 for each of `MAX_TABLES`, where `lop device profile` measures some
200 unless it is asked for more lengths."""

MAX_PROFILE_BYTES = 2 * 2**20
"""Of the largest profile's JSON, compact: no number is longer than 25 characters."""

DEVICE_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"

_PerSecond = Annotated[float, Field(strict=True, gt=0, le=1e21)]
_Text = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]+$")]

_EXAMPLE: dict[str, Any] = {
    "id": "office-workstation",
    "name": "Intel Core i7-12700",
    "kind": "cpu",
    "machine": "Intel Core i7-12700, 8 threads, Linux, torch 2.13.0, transformers 5.23.0",
    "memory_bytes": 33554432000,
    "flops_per_s": {"F32": 6.1e11},
    "bandwidth_bytes_per_s": 4.2e10,
    "layers": [
        {
            "shape": {
                "hidden_size": 2048,
                "num_heads": 32,
                "num_kv_groups": 4,
                "head_dim": 64,
                "ffn_parameters_per_channel": 6144,
                "other_parameters": 9441280,
                "dtype": "F32",
            },
            "batch": 1,
            "ffn_widths": [8, 2816, 5632],
            "prompt_tokens": [128, 1024],
            "cache_tokens": [129, 1025],
            "prefill_ms": [[5.1, 12.9, 20.7], [44.0, 108.0, 171.5]],
            "decode_ms": [[1.0, 2.6, 4.3], [1.1, 2.7, 4.4]],
            "smoothing": 0.0,
            "attention": {
                "kv_groups": [0, 1, 2, 3, 4],
                "prefill_ms": [[0.1, 1.4, 2.6, 3.8, 5.0], [0.5, 12.0, 22.5, 33.0, 43.5]],
                "decode_ms": [[0.05, 0.3, 0.5, 0.75, 0.95], [0.05, 0.35, 0.6, 0.85, 1.05]],
            },
        }
    ],
    "outside": [
        {
            "shape": {"hidden_size": 2048, "vocab_size": 32000, "parameters": 140000000, "dtype": "F32"},
            "batch": 1,
            "prompt_tokens": [128, 1024],
            "prefill_ms": [7.2, 9.0],
            "decode_ms": 6.5,
            "vision_ms": 310.0,
        }
    ],
}


class DeviceProfile(ProfilePart):
    """What `lop device profile` measured on one machine, and what `POST /v1/devices` takes.

    Attributes:
        id: what a request names; 1 to 100 letters, digits and . _ -
        kind: what ran the model.
        machine: the hardware and software that the times belong to.
        memory_bytes: memory that the model can use.
        flops_per_s: of a large matrix product, by dtype; F32 is always there.
        bandwidth_bytes_per_s: of a matrix-vector product whose matrix exceeds the caches.
        layers: one table a layer shape and batch.
        outside: one table a shape of the rest and batch.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    id: str = Field(pattern=DEVICE_ID_PATTERN)
    name: _Text
    kind: Literal["cpu", "cuda"]
    machine: _Text
    memory_bytes: Count
    flops_per_s: dict[Dtype, _PerSecond]
    bandwidth_bytes_per_s: _PerSecond
    layers: Annotated[tuple[LayerTable, ...], Field(max_length=MAX_TABLES)] = ()
    outside: Annotated[tuple[OutsideTable, ...], Field(max_length=MAX_TABLES)] = ()

    @model_validator(mode="after")
    def _is_consistent(self, info: ValidationInfo) -> Self:
        if "F32" not in self.flops_per_s:
            raise ValueError(f"flops_per_s needs the figure of F32, found {', '.join(self.flops_per_s) or 'none'}")
        for name, tables in (("layers", self.layers), ("outside", self.outside)):
            if len({table.key for table in tables}) != len(tables):
                raise ValueError(f"{name} holds one table a shape and batch, found two of the same")
        if info.context != STORED and self.num_times > MAX_TIMES:
            raise ValueError(f"all tables together hold at most {MAX_TIMES} numbers, found {self.num_times}")
        return self

    @property
    def num_times(self) -> int:
        """Numbers in all tables, their axes included."""
        return sum(table.num_times for table in self.layers) + sum(table.num_times for table in self.outside)

    def layer_table(self, shape: LayerShape, batch: int) -> LayerTable | None:
        """The table of this shape and batch, None if it was not measured."""
        return next((table for table in self.layers if table.key == (shape, batch)), None)

    def outside_table(self, shape: OutsideShape, batch: int) -> OutsideTable | None:
        """The table of this shape and batch, None if it was not measured."""
        return next((table for table in self.outside if table.key == (shape, batch)), None)

    def joined_with(self, newer: "DeviceProfile") -> "DeviceProfile":
        """`newer` with the tables of this profile that it has no others for.

        Raises InputError if the two are of different machines, or hold too many tables together.
        """
        check_same_machine(self.id, self.machine, newer.machine)
        measured = {*(table.key for table in newer.layers), *(table.key for table in newer.outside)}
        layers = (*(table for table in self.layers if table.key not in measured), *newer.layers)
        outside = (*(table for table in self.outside if table.key not in measured), *newer.outside)
        if max(len(layers), len(outside)) > MAX_TABLES:
            raise InputError(
                f"a profile holds at most {MAX_TABLES} tables",
                values=f"{len(layers)} of layers, {len(outside)} of the rest",
                remedy="Choose another id, or start afresh with --replace",
            )
        flops = {**self.flops_per_s, **newer.flops_per_s}
        joined = newer.model_copy(update={"layers": layers, "outside": outside, "flops_per_s": flops})
        if joined.num_times > MAX_TIMES:
            raise InputError(
                f"the tables of a profile hold at most {MAX_TIMES} numbers together",
                values=str(joined.num_times),
                remedy="Choose another id, start afresh with --replace, or measure fewer lengths",
            )
        return joined


def parse_profile(document: str | bytes, *, stored: bool = False) -> DeviceProfile:
    """The profile of a JSON document; raises InputError that names the first broken field.

    `stored`: it was registered before, perhaps by an earlier version that checked less.
    """
    try:
        return DeviceProfile.model_validate_json(document, context=STORED if stored else None)
    except ValidationError as error:
        raise invalid_profile(error) from error


def check_device_id(device_id: str) -> None:
    """Raises InputError unless a device can be registered under `device_id`."""
    if not re.fullmatch(DEVICE_ID_PATTERN, device_id):
        raise InputError(
            "a device's id is 1 to 100 letters, digits and . _ -, the first of them a letter or digit",
            values=repr(device_id),
            remedy="Choose another id",
        )


def check_same_machine(device_id: str, before: str, now: str) -> None:
    """Raises InputError if the machine of `device_id` was described as `before` and is `now` another."""
    if before != now:
        raise InputError(
            "an id stands for one machine, with the software that it was measured with",
            values=f"{device_id} was {before}, this is {now}",
            remedy="Choose another id, or start afresh with --replace",
        )
