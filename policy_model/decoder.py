"""The trained policy as requests use it: numpy, one token a decision, the keys and values of the past kept.

A decision is some eighty operations on a few hundred numbers; torch spends more time on calling them than on doing
them. The mean that every norm takes off is taken off the weights instead, once: what is written to the residual stream
is centred, so the stream always is, and a norm only has to scale it (as SliceGPT turns LayerNorm into RMSNorm, arXiv
2401.15024, section 3.2). All candidates see the same prefix, so a head multiplies its keys by the queries of all of
them at once; what each candidate decided is its own.
Letters: B candidates, N decisions, K options, D model width, H heads, O option width.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from policy_model.decoding_room import MOST_CANDIDATES, Past, Room, Scores
from policy_model.policy_config import PolicyConfig
from policy_model.problem_features import Float32Array, ProblemFeatures, Progress
from pruning.arrays import FloatArray, IntArray

FloatT = TypeVar("FloatT", Float32Array, FloatArray)

LARGEST_SCORE = 40.0
"""Of attention, whose exponential float32 can sum up: softmax looks for the largest only where one may be more."""

NORM_EPSILON = np.float32(1e-5)
"""Of torch's `layer_norm`."""


def gumbel_noise(num_decisions: int, batch: int, num_options: int, seed: int | Sequence[int]) -> Float32Array:
    """[N, B, K] noise for `PolicyDecoder.decode`, zero for candidate 0, which is therefore the greedy one."""
    noise = np.random.default_rng(seed).gumbel(size=(num_decisions, batch, num_options)).astype(np.float32)
    noise[:, 0] = 0.0
    return noise


@dataclass(frozen=True, eq=False)
class _Block:
    """The weights of one block; those that write to the residual stream are centred, and those that read from a norm
    hold its factor. Queries come out scaled as attention needs them.

    `is_bounded`: no score of attention is above `LARGEST_SCORE`, whatever is attended to.
    """

    query_key_value: Float32Array
    attention_out: Float32Array
    up: Float32Array
    down: Float32Array
    is_bounded: bool

    @classmethod
    def of(cls, weights: Mapping[str, Float32Array], index: int, num_heads: int) -> "_Block":
        found = {name: weights[f"blocks.{index}.{name}.weight"] for name in _BLOCK_WEIGHTS}
        found = {name: _centred(w) if name in _WRITING else _after_norm(w) for name, w in found.items()}
        width = len(found["query_key_value"])
        found["query_key_value"][:, :width] *= np.float32((width // num_heads) ** -0.5)
        return cls(**found, is_bounded=_largest_score(found["query_key_value"], num_heads) <= LARGEST_SCORE)


def _largest_score(query_key_value: Float32Array, num_heads: int) -> float:
    """A bound of what attention scores: it is of two vectors x, y no longer than 1 (see `_norm`), and x Q K' y is no
    more than the largest singular value of Q K'."""
    D = len(query_key_value)
    q, k, _ = query_key_value.reshape(D, 3, num_heads, -1).transpose(1, 2, 0, 3)  # [H, D, D / H]
    return float(np.linalg.norm(q @ k.transpose(0, 2, 1), ord=2, axis=(1, 2)).max())


_BLOCK_WEIGHTS = ("query_key_value", "attention_out", "up", "down")
_WRITING = ("attention_out", "down")


@dataclass(frozen=True, eq=False)
class _Prefix:
    """Keys [H, D / H, N] and values [H, N, D / H + 1] of one block, the same for all candidates; the last column of the
    values is 1."""

    keys: Float32Array
    values: Float32Array


class PolicyDecoder:
    """One model's: what the prefix says is worked out once. Threads may share it.

    Args:
        weights: the state of a `Policy`, by its names.
        config: its sizes.
        decisions: [N, F] features of the decisions, see `ModelFeatures`.

    Raises:
        KeyError, ValueError: the weights are not those of such a policy.
    """

    def __init__(self, weights: Mapping[str, Float32Array], config: PolicyConfig, decisions: FloatArray) -> None:
        found = (sum(name.endswith(".up.weight") for name in weights), *weights["read_decision.weight"].shape)
        if found != (config.num_blocks, config.width, decisions.shape[1]):
            raise ValueError(f"blocks, width and features are {found}, configuration says {config}")
        self._blocks = [_Block.of(weights, index, config.num_heads) for index in range(config.num_blocks)]
        self._num_heads = config.num_heads
        own = decisions.astype(np.float32) @ weights["read_decision.weight"].T + weights["read_decision.bias"]
        # What a decision's token is made of, but for what is left and the option before.
        self._own = _centred(own + weights["decides"])
        self._read_step = _centred(weights["read_step.weight"])
        self._read_previous = _centred(weights["read_previous.weight"].T), _centred(weights["read_previous.bias"])
        self._read_option = weights["read_option.weight"], weights["read_option.bias"][:, None]
        self._read_taken = np.ascontiguousarray(weights["read_taken.weight"].T)
        self._read_state = _after_norm(weights["read_state.weight"])
        self._score = weights["score"]
        self._rooms: dict[int, list[Room]] = {}  # by candidates, those that nobody is in
        self._prefix = self._encode_decisions(_centred(own))

    @property
    def num_decisions(self) -> int:
        return len(self._own)

    def decode(self, problem: ProblemFeatures, slack: IntArray, noise: Float32Array) -> IntArray:
        """Choices [B, N] that keep to `slack` [B, J].

        Each option is the argmax of log-probability plus `noise` [N, B, K]: Gumbel noise makes it a sample, none the
        most likely option.
        """
        choices = np.empty((len(slack), self.num_decisions), dtype=np.int64)
        with self._started(problem, slack) as state:
            for n in range(self.num_decisions):
                # Log-probabilities are logits but for a constant, which argmax does not see.
                option = (self._logits(state, n) + noise[n]).argmax(axis=1)
                choices[:, n] = option
                state.take(n, option)
        return choices

    def next_option(self, problem: ProblemFeatures, slack: IntArray, chosen: IntArray) -> FloatArray:
        """[K] probabilities of the decision after `chosen` [n], of `slack` [J] at the start; n < N."""
        with self._started(problem, slack[None]) as state:
            for n, option in enumerate(chosen):
                self._logits(state, n)
                state.take(n, np.array([option]))
            return _softmax(self._logits(state, len(chosen))[0].astype(np.float64))

    @contextmanager
    def _started(self, problem: ProblemFeatures, slack: IntArray) -> Iterator["_Decoding"]:
        """Nothing is decided yet; in a room that nobody else is in."""
        rooms = self._rooms.setdefault(len(slack), [])
        try:
            room = rooms.pop()
        except IndexError:
            N, D = self._own.shape
            room = Room(len(self._blocks), len(slack), N, D, self._num_heads)
        options = problem.options.astype(np.float32)
        (previous, previous_bias), (option, option_bias) = self._read_previous, self._read_option
        said = option @ options.swapaxes(-1, -2) + option_bias  # [(B,) N, O, K]
        said = said[:, :, None] if said.ndim == 3 else said.transpose(1, 2, 0, 3)
        yield _Decoding(problem.start(slack), None, room, options @ previous + previous_bias, said)
        if len(slack) <= MOST_CANDIDATES:
            rooms.append(room)

    def _logits(self, state: "_Decoding", n: int) -> Float32Array:
        """[B, K] of decision `n`, -inf where infeasible."""
        room = state.room
        x = np.matmul(state.progress.step_features(n), self._read_step, out=room.x)
        x += self._own[n]
        if state.previous is not None:
            x += state.previous
        for block, prefix, past in zip(self._blocks, self._prefix, room.past[n], strict=True):
            _step(block, prefix, past, room.scores[n], room)
        taken = state.progress.taken_features(n)
        _, B, K = taken.shape
        hidden = (self._read_taken @ taken.reshape(-1, B * K)).reshape(-1, B, K)  # [O, B, K]
        hidden += state.options[n]
        hidden += (_normed(room) @ self._read_state).T[:, :, None]
        _square_of_relu(hidden)
        logits: Float32Array = (self._score @ hidden.reshape(-1, B * K)).reshape(B, K)
        np.copyto(logits, -np.inf, where=~state.progress.problem.costs.feasible(n, state.progress.slack))
        return logits

    def _encode_decisions(self, x: Float32Array) -> list["_Prefix"]:
        """Of each block, of the prefix tokens x [N, D]."""
        prefix = []
        for block in self._blocks:
            N, D = x.shape
            q, k, v = (_norm(x) @ block.query_key_value).reshape(N, 3, self._num_heads, -1).transpose(1, 2, 0, 3)
            keys = np.ascontiguousarray(k.swapaxes(1, 2))
            prefix.append(_Prefix(keys, np.append(v, np.ones_like(v[..., :1]), axis=2)))
            p = _softmax(np.matmul(q, keys))
            x = x + np.matmul(p, v).transpose(1, 0, 2).reshape(N, D) @ block.attention_out
            x += _square_of_relu(_norm(x) @ block.up) @ block.down
        return prefix


@dataclass(eq=False)
class _Decoding:
    """One decoding in progress: what the option before adds to the next token [B, D], and the room that it takes place
    in. What every option would add [(B,) N, K, D], and what it says to its own score [N, O, 1 or B, K], is worked out
    at the start; with B if each row has costs of its own."""

    progress: Progress
    previous: Float32Array | None
    room: Room
    added: Float32Array
    options: Float32Array

    def take(self, n: int, chosen: IntArray) -> None:
        """Go on with `chosen` [B] in decision `n`."""
        self.progress.take(n, chosen)
        added = self.added[..., n, :, :]
        self.previous = added.take(chosen, axis=0) if added.ndim == 2 else added[np.arange(len(chosen)), chosen]


def _step(block: _Block, prefix: "_Prefix", past: Past, scores: Scores, room: Room) -> None:
    """The token `room.x` [B, D] of one decision through a block; `past` gets its key and value."""
    np.matmul(_normed(room), block.query_key_value, out=room.query_key_value)
    np.copyto(past.here, room.key_value)
    np.matmul(room.queries_of_heads, prefix.keys, out=room.prefix_scores)
    np.matmul(past.keys, room.queries, out=scores.as_columns)
    p = scores.both
    if not block.is_bounded:
        p -= np.maximum.reduce(p, axis=-1, keepdims=True)
    np.exp(p, out=p)
    np.matmul(scores.as_rows, past.values, out=room.sums_of_past)
    np.matmul(room.prefix_scores, prefix.values, out=room.sums_of_prefix)
    np.add(room.sums, room.more_sums, out=room.sums)
    np.divide(room.weighted, room.weights, out=room.attended_by_head)
    np.add(room.x, np.matmul(room.attended, block.attention_out, out=room.added), out=room.x)
    hidden = _square_of_relu(_normed(room) @ block.up)
    np.add(room.x, np.matmul(hidden, block.down, out=room.added), out=room.x)


def _square_of_relu(x: Float32Array) -> Float32Array:
    """Written over `x`."""
    np.maximum(x, 0.0, out=x)
    return np.multiply(x, x, out=x)


def _centred(x: Float32Array) -> Float32Array:
    """x [..., D] less its mean over D."""
    centred: Float32Array = x - x.mean(axis=-1, keepdims=True)
    return centred


def _norm(x: Float32Array) -> Float32Array:
    """Layer norm without weights of x [..., D], whose mean is 0, over the root of D: see `_after_norm`."""
    normed: Float32Array = x / np.sqrt(np.vecdot(x, x)[..., None] + NORM_EPSILON * np.float32(x.shape[-1]))
    return normed


def _normed(room: Room) -> Float32Array:
    """The same of `room.x`."""
    np.vecdot(room.x, room.x, out=room.lengths)
    np.add(room.length, NORM_EPSILON * room.x.shape[1], out=room.length)
    np.sqrt(room.length, out=room.length)
    return np.divide(room.x, room.length, out=room.normed)


def _after_norm(weight: Float32Array) -> Float32Array:
    """`weight` [D, O] of what reads from a norm, times the root of D that `_norm` leaves out."""
    scaled: Float32Array = weight * np.float32(weight.shape[0] ** 0.5)
    return scaled


def _softmax(scores: FloatT) -> FloatT:
    p: FloatT = np.exp(scores - np.maximum.reduce(scores, axis=-1, keepdims=True))
    p /= np.add.reduce(p, axis=-1, keepdims=True)
    return p
