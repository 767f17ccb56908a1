"""What was measured on one machine: the time of single decoder layers along a ladder of FFN widths, and the rest.

Tables are by shape, not by model: every model whose layers have the same shape and dtype is priced by the same table.
What is registered is checked: no time falls while a width grows, nor, by more than `LENGTH_NOISE`, while a length does.

Letters: W widths of the ladder, P prompt lengths, C cache lengths.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.decoder_layer import DecoderLayer
from pruning.errors import InputError

MAX_TABLES = 64
MAX_TIMES = 2**16
"""Numbers in all tables of a profile together: 1,024 for each of `MAX_TABLES`, where `lop device profile` measures some
120 unless it is asked for more lengths."""

MAX_PROFILE_BYTES = 2 * 2**20
"""Of the largest profile's JSON, compact: no number is longer than 25 characters."""

LENGTH_NOISE = 0.1
"""How far a time may lie below that of a shorter length. `lop device profile` smooths what it measures; of times from
elsewhere, a step is noise where one pass hardly takes longer than the other: decoding at two lengths of the cache."""

STORED = {"stored": True}
"""Validation context of profiles that were registered before: read as they are, if they lack what is checked today."""

DEVICE_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"

_Count = Annotated[int, Field(strict=True, ge=1, le=2**53)]
_Milliseconds = Annotated[float, Field(strict=True, gt=0, le=1e9)]
_PerSecond = Annotated[float, Field(strict=True, gt=0, le=1e21)]
_Text = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]+$")]
Dtype = Literal["F64", "F32", "F16", "BF16"]
TIMED_DTYPES: tuple[str, ...] = get_args(Dtype)

_Row = Annotated[tuple[_Milliseconds, ...], Field(min_length=1, max_length=1024)]
_Table = Annotated[tuple[_Row, ...], Field(min_length=1, max_length=1024)]
_Axis = Annotated[tuple[_Count, ...], Field(min_length=1, max_length=1024)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LayerShape(_Part):
    """What the time of a decoder layer depends on, beside its FFN width.

    `ffn_parameters_per_channel` tells gated FFNs and biases apart, `other_parameters` (the layer without its FFN) the
    biases and norms of the attention.
    """

    hidden_size: _Count
    num_heads: _Count
    num_kv_groups: _Count
    head_dim: _Count
    ffn_parameters_per_channel: _Count
    other_parameters: Annotated[int, Field(strict=True, ge=0, le=2**53)]
    dtype: Dtype

    @classmethod
    def is_of(cls, anatomy: ModelAnatomy, layer: DecoderLayer) -> Self:
        """The shape of `layer`, which belongs to `anatomy`; raises InputError for a dtype that is not timed."""
        try:
            return cls(
                hidden_size=anatomy.hidden_size,
                num_heads=layer.num_heads,
                num_kv_groups=layer.num_kv_groups,
                head_dim=layer.head_dim,
                ffn_parameters_per_channel=layer.ffn_parameters_per_channel,
                other_parameters=layer.parameters - layer.ffn_parameters,
                dtype=anatomy.dtype,
            )
        except ValidationError as error:
            raise invalid_profile(error) from error


class OutsideShape(_Part):
    """What the time outside of the decoder layers depends on.

    `parameters` counts all that lies there: embedding, norm, head, vision tower and projector.
    """

    hidden_size: _Count
    vocab_size: _Count
    parameters: _Count
    dtype: Dtype

    @classmethod
    def is_of(cls, anatomy: ModelAnatomy) -> Self:
        """The shape of what `anatomy` has outside of its layers; raises InputError for a dtype that is not timed."""
        try:
            return cls(
                hidden_size=anatomy.hidden_size,
                vocab_size=anatomy.vocab_size,
                parameters=anatomy.total_parameters - anatomy.decoder_parameters,
                dtype=anatomy.dtype,
            )
        except ValidationError as error:
            raise invalid_profile(error) from error


class LayerTable(_Part):
    """Median times of one decoder layer, for one shape and batch, in milliseconds.

    Attributes:
        ffn_widths: the ladder, [W] ascending.
        prompt_tokens: [P] ascending.
        cache_tokens: positions that a decode step attends to, its own included, [C] ascending.
        prefill_ms: [P][W], a whole prompt through the layer.
        decode_ms: [C][W], one token a sequence through the layer.
        smoothing: the most that a time was moved, as a fraction of it, so that none falls while the width or the
            length grows.
    """

    shape: LayerShape
    batch: _Count
    ffn_widths: _Axis
    prompt_tokens: _Axis
    cache_tokens: _Axis
    prefill_ms: _Table
    decode_ms: _Table
    smoothing: float = Field(default=0.0, strict=True, ge=0)

    @model_validator(mode="after")
    def _is_whole(self, info: ValidationInfo) -> Self:
        for name in ("ffn_widths", "prompt_tokens", "cache_tokens"):
            _check_ascending(name, getattr(self, name))
        _check_table("prefill_ms", self.prefill_ms, rows=len(self.prompt_tokens), columns=len(self.ffn_widths))
        _check_table("decode_ms", self.decode_ms, rows=len(self.cache_tokens), columns=len(self.ffn_widths))
        if info.context != STORED:
            for column, width in enumerate(self.ffn_widths):
                at = f"at width {width}"
                _check_lengths("prefill_ms", [row[column] for row in self.prefill_ms], self.prompt_tokens, at)
                _check_lengths("decode_ms", [row[column] for row in self.decode_ms], self.cache_tokens, at)
        return self

    @property
    def num_times(self) -> int:
        """Numbers in the table, its axes included."""
        lengths = len(self.prompt_tokens) + len(self.cache_tokens)
        return (lengths + 1) * len(self.ffn_widths) + lengths

    @property
    def key(self) -> tuple[LayerShape, int]:
        """There is one table of each key in a profile."""
        return (self.shape, self.batch)


class OutsideTable(_Part):
    """Median times outside of the decoder layers, for one shape and batch, in milliseconds.

    Attributes:
        prompt_tokens: [P] ascending.
        prefill_ms: [P]: embedding the prompt, final norm, and the head at the last position.
        decode_ms: the same for one token a sequence.
        vision_ms: vision tower and projector, one image a sequence; 0 if the model has none.
    """

    shape: OutsideShape
    batch: _Count
    prompt_tokens: _Axis
    prefill_ms: _Row
    decode_ms: _Milliseconds
    vision_ms: float = Field(strict=True, ge=0, le=1e9)

    @model_validator(mode="after")
    def _is_whole(self, info: ValidationInfo) -> Self:
        _check_ascending("prompt_tokens", self.prompt_tokens)
        if len(self.prefill_ms) != len(self.prompt_tokens):
            raise ValueError(
                f"prefill_ms needs a time for each of {len(self.prompt_tokens)} prompt lengths, "
                f"found {len(self.prefill_ms)}"
            )
        if info.context != STORED:
            _check_lengths("prefill_ms", self.prefill_ms, self.prompt_tokens, "outside of the layers")
        return self

    @property
    def num_times(self) -> int:
        """Numbers in the table, its axis included."""
        return 2 * len(self.prompt_tokens)

    @property
    def key(self) -> tuple[OutsideShape, int]:
        """There is one table of each key in a profile."""
        return (self.shape, self.batch)


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


class DeviceProfile(_Part):
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
    memory_bytes: _Count
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


def invalid_profile(error: ValidationError) -> InputError:
    """What pydantic found first, as an error of our own."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"])) or "document"
    return InputError(
        f"not a valid device profile: {where}: {first['msg']}",
        values=repr(first.get("input"))[:80],
        remedy="Measure the device again with `lop device profile`",
    )


def _check_ascending(name: str, axis: Sequence[int]) -> None:
    for before, after in pairwise(axis):
        if after <= before:
            raise ValueError(f"{name} must ascend, found {before} before {after}")


def _check_table(name: str, table: Sequence[Sequence[float]], *, rows: int, columns: int) -> None:
    """Raises ValueError unless `table` is [rows][columns] and no row falls."""
    if len(table) != rows or any(len(row) != columns for row in table):
        found = f"{len(table)} rows of {sorted({len(row) for row in table})}"
        raise ValueError(f"{name} needs {rows} rows of {columns} times, one a width; found {found}")
    for index, row in enumerate(table):
        for column, (before, after) in enumerate(pairwise(row)):
            if after < before:
                raise ValueError(
                    f"{name}[{index}] must not fall while the width grows, "
                    f"found {before} ms and then {after} ms at width {column + 1}"
                )


def _check_lengths(name: str, times: Sequence[float], lengths: Sequence[int], where: str) -> None:
    """Raises ValueError if one of `times` [P] lies more than `LENGTH_NOISE` below that of a shorter length."""
    longest = 0.0
    for length, time_ms in zip(lengths, times, strict=True):
        if time_ms < longest * (1.0 - LENGTH_NOISE):
            raise ValueError(
                f"{name} must not fall by more than {LENGTH_NOISE:.0%} while the length grows, "
                f"found {longest} ms and then {time_ms} ms at {length} tokens {where}"
            )
        longest = max(longest, time_ms)
