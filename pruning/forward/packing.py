"""Sequences side by side in one row, without padding between them: a layer works on real tokens only.

Right-padded batches [B, T, D] become rows [1, N, D], N the tokens that are no padding. Everything in a decoder layer
but attention treats tokens one by one and does not notice; attention is computed sequence by sequence, by an attention
function that knows where they begin. Sequences of all batches are shared out evenly over rows of about `ROW_TOKENS`,
so that batches of any size keep all cores busy.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pruning.anatomy.decoder_view import DecoderView
from pruning.forward.layerwise import LayerCalls, VisualFeatures

ROW_TOKENS: Final = 512
"""Tokens of a row, about: enough for matrix products at full speed, few enough for activations to stay in caches."""

_ATTENTION: Final = "lop_packed"

_lock = threading.Lock()
_users: dict[int, tuple[Any, str, int]] = {}
"""By its id, each config that attends within rows now: itself, its own implementation, how many blocks want that."""

_thread = threading.local()
"""`runs`: of the row that this thread computes, for the layer that it is in; absent outside of one."""


@dataclass(frozen=True)
class _Run:
    """Neighbouring sequences of equal length in a row that attention takes at once.

    Attributes:
        start: token at which the first begins.
        count: how many there are.
        length: tokens of each.
        mask: [1, H or 1, length, length] true where a token sees another; None: as the attention module does without.
    """

    start: int
    count: int
    length: int
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Place:
    """A sequence among recorded batches: row `row` of batch `batch`, its first `length` positions."""

    batch: int
    row: int
    length: int


@dataclass(frozen=True)
class PackedCalls:
    """As `LayerCalls`, for sequences in one row.

    Attributes:
        hidden: [1, N, D] input of layer 0.
        arguments, runs: of each layer.
        features: of the first layers, as many as have any.
        places: the sequences, in their order in the row.
    """

    hidden: torch.Tensor
    arguments: tuple[dict[str, Any], ...]
    runs: tuple[tuple[_Run, ...], ...]
    features: tuple[VisualFeatures, ...]
    places: tuple[Place, ...]

    def through(self, index: int, layer: nn.Module | None, hidden: torch.Tensor) -> torch.Tensor:
        """`hidden` [1, N, D] after layer `index`, which is `layer`, or skipped (None); only inside of
        `packed_attention`."""
        _thread.runs = self.runs[index]
        try:
            after: torch.Tensor = hidden if layer is None else layer(hidden, **self.arguments[index])
        finally:
            del _thread.runs
        return self.features[index].added_to(after) if index < len(self.features) else after

    @property
    def starts(self) -> dict[tuple[int, int], int]:
        """(batch, row) of each sequence -> its first token in the row."""
        found, start = {}, 0
        for place in self.places:
            found[place.batch, place.row] = start
            start += place.length
        return found


@contextmanager
def packed_attention(view: DecoderView) -> Iterator[None]:
    """In the block the decoder's layers attend within the sequences of `PackedCalls`."""
    attentions: list[Any] = [layer.get_submodule(view.family.attention) for layer in view.layers]
    # A layer's view of a config hands on what is not its own.
    configs = {id(config): config for config in (getattr(x.config, "_model_config", x.config) for x in attentions)}
    with _lock:
        for key, config in configs.items():
            _, own, count = _users.get(key, (config, config._attn_implementation, 0))
            _users[key] = config, own, count + 1
            config._attn_implementation = _ATTENTION
    try:
        yield
    finally:
        with _lock:
            for key, config in configs.items():
                _, own, count = _users.pop(key)
                if count > 1:  # another evaluator of a model with this config is at work
                    _users[key] = config, own, count - 1
                else:
                    config._attn_implementation = own


def shared_out(places: Sequence[Place], row_tokens: int = ROW_TOKENS) -> list[list[Place]]:
    """`places` in rows of at most about `row_tokens`: the longest first, each into the row with the fewest tokens so
    far. In a row they stand by length, so that neighbours of equal length attend at once.

    Rows are an even number if there are as many sequences: two cores, or four, then end together. How many cores there
    are has no say, since numbers would depend on it.
    """
    total = sum(place.length for place in places)
    rows: list[list[Place]] = [[] for _ in range(min(len(places), 2 * -(-total // (2 * row_tokens))))]
    filled = [0] * len(rows)
    for place in sorted(places, key=lambda place: -place.length):
        index = filled.index(min(filled))
        rows[index].append(place)
        filled[index] += place.length
    return rows


def pack(view: DecoderView, recorded: Sequence[LayerCalls], places: Sequence[Place]) -> PackedCalls:
    """The sequences at `places` of `recorded` batches, whose attention implementation is "sdpa", in one row."""
    join = _Joining(recorded, places)
    arguments, runs = [], []
    known: dict[tuple[int, ...], tuple[_Run, ...]] = {}
    for layer in range(len(view.layers)):
        rest = [dict(calls.arguments[layer]) for calls in recorded]
        masks = [kwargs.pop("attention_mask", None) for kwargs in rest]
        key = tuple(id(mask) for mask in masks)
        if key not in known:
            known[key] = _runs(masks, places, is_causal=view.is_causal)
        runs.append(known[key])
        joined = {name: join([kwargs[name] for kwargs in rest]) for name in rest[0]}
        arguments.append({**joined, "attention_mask": None})
    features = tuple(join.features(layer) for layer in range(max(len(calls.features) for calls in recorded)))
    hidden = join([calls.hidden for calls in recorded])
    return PackedCalls(hidden, tuple(arguments), tuple(runs), features, tuple(places))


class _Joining:
    """Takes the tokens of `places` out of what batches were called with. The same in, the same out: layers share."""

    def __init__(self, recorded: Sequence[LayerCalls], places: Sequence[Place]) -> None:
        self._recorded, self._places = recorded, places
        self._shapes = [tuple(calls.hidden.shape[:2]) for calls in recorded]
        self._known: dict[tuple[int, ...], Any] = {}

    def __call__(self, values: Sequence[Any]) -> Any:
        """One value of each batch: tensors with a token axis, tuples of such, or what is the same for all."""
        key = tuple(id(value) for value in values)
        if key not in self._known:
            self._known[key] = self._joined(values)
        return self._known[key]

    def _joined(self, values: Sequence[Any]) -> Any:
        first = values[self._places[0].batch]
        if isinstance(first, tuple | list):
            return type(first)(self(parts) for parts in zip(*values, strict=True))
        if not isinstance(first, torch.Tensor):
            return first
        axis = self._row_axis(first, self._places[0].batch)
        if axis is None:
            return first
        pieces = []
        for place in self._places:
            value = values[place.batch]
            # What does not depend on the row may have one for all.
            row = value.select(axis, place.row if value.shape[axis] > 1 else 0)
            pieces.append(row.narrow(axis, 0, place.length))
        return torch.cat(pieces, dim=axis).unsqueeze(axis)

    def _row_axis(self, value: torch.Tensor, batch: int) -> int | None:
        """The axis of rows, right before that of tokens: [B, T], [B, T, D], [3, B, T, D], or with 1 for B."""
        rows, tokens = self._shapes[batch]
        shape = value.shape
        return next((i for i in range(value.ndim - 1) if shape[i] in (rows, 1) and shape[i + 1] == tokens), None)

    def features(self, layer: int) -> VisualFeatures:
        """What is added to hidden states after `layer`; batches without pictures add nothing."""
        marks: list[torch.Tensor | None] = [None] * len(self._recorded)
        dense: list[torch.Tensor | None] = [None] * len(self._recorded)
        for batch in {place.batch for place in self._places}:
            calls = self._recorded[batch]
            mark = torch.zeros(calls.hidden.shape[:2], dtype=torch.bool, device=calls.hidden.device)
            values = torch.zeros_like(calls.hidden)
            if layer < len(calls.features):
                mark = calls.features[layer].tokens
                values[mark] = calls.features[layer].values
            marks[batch], dense[batch] = mark, values
        tokens = self._joined(marks)
        return VisualFeatures(tokens, self._joined(dense)[tokens])


def _runs(masks: Sequence[torch.Tensor | None], places: Sequence[Place], *, is_causal: bool) -> tuple[_Run, ...]:
    """How attention takes the sequences at `places`, whose batches have `masks` [B or 1, H or 1, T, T].

    A mask that says no more than "causal" is left to the kernel, which knows that by itself. Right padding is never
    seen by the tokens before it.
    """
    seen = [_own_mask(masks[place.batch], place, is_causal=is_causal) for place in places]
    runs: list[_Run] = []
    start = 0
    for (length, is_plain), group in groupby(
        zip(places, seen, strict=True), key=lambda pair: (pair[0].length, pair[1] is None)
    ):
        own = [mask for _, mask in group]
        if is_plain:
            runs.append(_Run(start, len(own), length, None))
        else:
            runs += [_Run(start + i * length, 1, length, mask) for i, mask in enumerate(own)]
        start += len(own) * length
    return tuple(runs)


def _own_mask(mask: torch.Tensor | None, place: Place, *, is_causal: bool) -> torch.Tensor | None:
    """What of `mask` is about one sequence, [1, H or 1, length, length]; None if it is that of the kernel."""
    if mask is None:
        return None
    own = mask[place.row if len(mask) > 1 else 0, :, : place.length, : place.length][None]
    triangle = torch.ones(place.length, place.length, dtype=torch.bool, device=mask.device).tril()
    return None if is_causal and bool((own == triangle).all()) else own


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers: heads [1, H, N, d] of a row in, [1, N, H, d] out."""
    runs: tuple[_Run, ...] | None = getattr(_thread, "runs", None)
    if runs is None:  # a model with the same config, used elsewhere meanwhile
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return output, None
    outputs = []
    for run in runs:
        heads = (_sequences(x, run) for x in (query, key, value))
        output, _ = sdpa_attention_forward(module, *heads, run.mask, **kwargs)
        outputs.append(output.reshape(1, run.count * run.length, *output.shape[2:]))
    return torch.cat(outputs, dim=1), None


def _sequences(heads: torch.Tensor, run: _Run) -> torch.Tensor:
    """Views [count, H, length, d] of heads [1, H, N, d]."""
    own = heads[0, :, run.start : run.start + run.count * run.length]
    return own.reshape(len(own), run.count, run.length, -1).transpose(0, 1)


ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, _attention)
