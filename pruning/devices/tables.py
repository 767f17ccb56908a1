"""Tables of a device profile: what single decoder layers of one shape take, and what lies outside of them.

Each checks itself: no time falls while a layer keeps more, nor, by more than `LENGTH_NOISE`, while a length grows.

Letters: W FFN widths of the ladder, G numbers of KV groups, P prompt lengths, C cache lengths.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.decoder_layer import DecoderLayer
from pruning.errors import InputError
from pruning.planning.plan_parts import is_none

LENGTH_NOISE = 0.1
"""How far a time may lie below that of a shorter length. `lop device profile` smooths what it measures; of times from
elsewhere, a step is noise where one pass hardly takes longer than the other: decoding at two lengths of the cache."""

STORED = {"stored": True}
"""Validation context of profiles that were registered before: read as they are, if they lack what is checked today."""

Count = Annotated[int, Field(strict=True, ge=1, le=2**53)]
_CountFrom0 = Annotated[int, Field(strict=True, ge=0, le=2**53)]
_Milliseconds = Annotated[float, Field(strict=True, gt=0, le=1e9)]
Dtype = Literal["F64", "F32", "F16", "BF16"]
TIMED_DTYPES: tuple[str, ...] = get_args(Dtype)

_Row = Annotated[tuple[_Milliseconds, ...], Field(min_length=1, max_length=1024)]
_Table = Annotated[tuple[_Row, ...], Field(min_length=1, max_length=1024)]
_Axis = Annotated[tuple[Count, ...], Field(min_length=1, max_length=1024)]


class ProfilePart(BaseModel):
    """Immutable, and of known fields and finite numbers alone."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LayerShape(ProfilePart):
    """What the time of a decoder layer depends on, beside the FFN width and the KV groups that it keeps.

    `ffn_parameters_per_channel` tells gated FFNs and biases apart, `other_parameters` (the layer without its FFN) the
    biases and norms of the attention.
    """

    hidden_size: Count
    num_heads: Count
    num_kv_groups: Count
    head_dim: Count
    ffn_parameters_per_channel: Count
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


class OutsideShape(ProfilePart):
    """What the time outside of the decoder layers depends on.

    `parameters` counts all that lies there: embedding, norm, head, vision tower and projector.
    """

    hidden_size: Count
    vocab_size: Count
    parameters: Count
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


class AttentionTable(ProfilePart):
    """Median times of a decoder layer without its FFN, in milliseconds, at the lengths of its `LayerTable`.

    Attributes:
        kv_groups: that it keeps, each with its query heads, [G] ascending from 0 to all. With none, attention is
            skipped, too: what is left of the layer then.
        prefill_ms: [P][G].
        decode_ms: [C][G].
    """

    kv_groups: Annotated[tuple[_CountFrom0, ...], Field(min_length=2, max_length=1024)]
    prefill_ms: _Table
    decode_ms: _Table

    @property
    def num_times(self) -> int:
        """Numbers in the table, its axis included."""
        return (len(self.prefill_ms) + len(self.decode_ms) + 1) * len(self.kv_groups)


class LayerTable(ProfilePart):
    """Median times of one decoder layer, for one shape and batch, in milliseconds.

    Attributes:
        ffn_widths: the ladder, [W] ascending.
        prompt_tokens: [P] ascending.
        cache_tokens: positions that a decode step attends to, its own included, [C] ascending.
        prefill_ms: [P][W], a whole prompt through the layer.
        decode_ms: [C][W], one token a sequence through the layer.
        smoothing: the most that a time was moved, as a fraction of it, so that none falls while the layer keeps more or
            the length grows.
        drift: how much longer (or shorter, if negative) the passes of the later half of the rounds took than those of
            the earlier one, as a fraction: the machine's own unsteadiness. None in profiles from before it was kept.
        attention: the layer without its FFN. None in profiles from before it was timed: those know no time of cut
            attention, nor of skips.
    """

    shape: LayerShape
    batch: Count
    ffn_widths: _Axis
    prompt_tokens: _Axis
    cache_tokens: _Axis
    prefill_ms: _Table
    decode_ms: _Table
    smoothing: float = Field(default=0.0, strict=True, ge=0)
    # Left out where they are None: the content of profiles from before is what it was, and so are the keys of plans.
    drift: float | None = Field(default=None, strict=True, gt=-1, allow_inf_nan=False, exclude_if=is_none)
    attention: AttentionTable | None = Field(default=None, exclude_if=is_none)

    @model_validator(mode="after")
    def _is_whole(self, info: ValidationInfo) -> Self:
        for name in ("ffn_widths", "prompt_tokens", "cache_tokens"):
            _check_ascending(name, getattr(self, name))
        for phase, lengths in (("prefill_ms", self.prompt_tokens), ("decode_ms", self.cache_tokens)):
            table = getattr(self, phase)
            _check_table(phase, table, len(lengths), self.ffn_widths, "width")
            if info.context != STORED:
                _check_columns(phase, table, lengths, self.ffn_widths, "width")
        if self.attention is not None:
            self._check_attention(self.attention)
        return self

    def _check_attention(self, attention: AttentionTable) -> None:
        """Raises ValueError unless its ladder goes from nothing to all groups, at the same lengths, and ends below the
        narrowest FFN."""
        groups = attention.kv_groups
        _check_ascending("attention.kv_groups", groups)
        if (groups[0], groups[-1]) != (0, self.shape.num_kv_groups):
            raise ValueError(
                f"attention.kv_groups go from 0 to the {self.shape.num_kv_groups} of the shape, "
                f"found {groups[0]} to {groups[-1]}"
            )
        for phase, lengths in (("prefill_ms", self.prompt_tokens), ("decode_ms", self.cache_tokens)):
            table, name = getattr(attention, phase), f"attention.{phase}"
            _check_table(name, table, len(lengths), groups, "number of groups")
            _check_columns(name, table, lengths, groups, "number of groups")
            for index, (without, narrowest) in enumerate(zip(table, getattr(self, phase), strict=True)):
                if narrowest[0] < without[-1]:
                    raise ValueError(
                        f"{phase}[{index}] must not be below {name}[{index}], the same layer without its FFN, "
                        f"found {narrowest[0]} ms and {without[-1]} ms"
                    )

    @property
    def num_times(self) -> int:
        """Numbers in the table, its axes included."""
        lengths = len(self.prompt_tokens) + len(self.cache_tokens)
        attention = 0 if self.attention is None else self.attention.num_times
        return (lengths + 1) * len(self.ffn_widths) + lengths + attention

    @property
    def key(self) -> tuple[LayerShape, int]:
        """There is one table of each key in a profile."""
        return (self.shape, self.batch)


class OutsideTable(ProfilePart):
    """Median times outside of the decoder layers, for one shape and batch, in milliseconds.

    Attributes:
        prompt_tokens: [P] ascending.
        prefill_ms: [P]: embedding the prompt, final norm, and the head at the last position.
        decode_ms: the same for one token a sequence.
        vision_ms: vision tower and projector, one image a sequence; 0 if the model has none.
    """

    shape: OutsideShape
    batch: Count
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


def _check_table(name: str, table: Sequence[Sequence[float]], rows: int, axis: Sequence[int], axis_name: str) -> None:
    """Raises ValueError unless `table` is [rows][len(axis)] and no row falls."""
    if len(table) != rows or any(len(row) != len(axis) for row in table):
        found = f"{len(table)} rows of {sorted({len(row) for row in table})}"
        raise ValueError(f"{name} needs {rows} rows of {len(axis)} times, one a {axis_name}; found {found}")
    for index, row in enumerate(table):
        for column, (before, after) in enumerate(pairwise(row)):
            if after < before:
                raise ValueError(
                    f"{name}[{index}] must not fall while the {axis_name} grows, "
                    f"found {before} ms and then {after} ms at {axis_name} {axis[column + 1]}"
                )


def _check_columns(
    name: str, table: Sequence[Sequence[float]], lengths: Sequence[int], axis: Sequence[int], axis_name: str
) -> None:
    """Raises ValueError as `_check_lengths` for a column of `table` [P][len(axis)]."""
    for column, at in enumerate(axis):
        _check_lengths(name, [row[column] for row in table], lengths, f"at {axis_name} {at}")


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
