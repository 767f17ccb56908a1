"""The trained policy as requests use it: numpy, one token a decision, the keys and values of the past kept.

A decision is some eighty operations on a few hundred numbers; torch spends more time on calling them than on doing
them. The mean that every norm takes off is taken off the weights instead, once: what is written to the residual stream
is centred, so the stream always is, and a norm only has to scale it (as SliceGPT turns LayerNorm into RMSNorm, arXiv
2401.15024, section 3.2).
Letters: B candidates, N decisions, K options, D model width, H heads, O option width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from policy_model.policy_config import PolicyConfig
from policy_model.problem_features import Float32Array, ProblemFeatures, Progress
from pruning.arrays import FloatArray, IntArray

FloatT = TypeVar("FloatT", Float32Array, FloatArray)

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
    hold its factor. Queries come out scaled as attention needs them."""

    query_key_value: Float32Array
    attention_out: Float32Array
    up: Float32Array
    down: Float32Array

    @classmethod
    def of(cls, weights: Mapping[str, Float32Array], index: int, num_heads: int) -> "_Block":
        found = {name: weights[f"blocks.{index}.{name}.weight"] for name in _BLOCK_WEIGHTS}
        found = {name: _centred(w) if name in _WRITING else _after_norm(w) for name, w in found.items()}
        width = len(found["query_key_value"])
        found["query_key_value"][:, :width] *= np.float32((width // num_heads) ** -0.5)
        return cls(**found)


_BLOCK_WEIGHTS = ("query_key_value", "attention_out", "up", "down")
_WRITING = ("attention_out", "down")


class PolicyDecoder:
    """One model's: what the prefix says is worked out once. Immutable, so threads may share it.

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
        self._read_option = np.ascontiguousarray(weights["read_option.weight"].T), weights["read_option.bias"]
        self._read_taken, self._read_state = weights["read_taken.weight"], _after_norm(weights["read_state.weight"])
        self._score = weights["score"]
        self._prefix = self._encode_decisions(_centred(own))

    @property
    def num_decisions(self) -> int:
        return len(self._own)

    def decode(self, problem: ProblemFeatures, slack: IntArray, noise: Float32Array) -> IntArray:
        """Choices [B, N] that keep to `slack` [B, J].

        Each option is the argmax of log-probability plus `noise` [N, B, K]: Gumbel noise makes it a sample, none the
        most likely option.
        """
        state = self._start(problem, slack)
        choices = np.empty((len(slack), self.num_decisions), dtype=np.int64)
        for n in range(self.num_decisions):
            # Log-probabilities are logits but for a constant, which argmax does not see.
            option = (self._logits(state, n) + noise[n]).argmax(axis=1)
            choices[:, n] = option
            state.take(n, option)
        return choices

    def next_option(self, problem: ProblemFeatures, slack: IntArray, chosen: IntArray) -> FloatArray:
        """[K] probabilities of the decision after `chosen` [n], of `slack` [J] at the start; n < N."""
        state = self._start(problem, slack[None])
        for n, option in enumerate(chosen):
            self._logits(state, n)
            state.take(n, np.array([option]))
        return _softmax(self._logits(state, len(chosen))[0].astype(np.float64))

    def _start(self, problem: ProblemFeatures, slack: IntArray) -> "_Decoding":
        """Keys and values are the prefix's first, then those of the decisions made."""
        B, N = len(slack), self.num_decisions
        cache = np.empty((len(self._blocks), 2, B, self._num_heads, 2 * N, self._head_width), dtype=np.float32)
        cache[:, :, :, :, :N] = self._prefix[:, :, None]
        options = problem.options.astype(np.float32)
        (previous, previous_bias), (option, option_bias) = self._read_previous, self._read_option
        reads = options @ previous + previous_bias, options @ option + option_bias
        return _Decoding(problem.start(slack), None, cache, *reads)

    @property
    def _head_width(self) -> int:
        return int(self._own.shape[1]) // self._num_heads

    def _logits(self, state: "_Decoding", n: int) -> Float32Array:
        """[B, K] of decision `n`, -inf where infeasible."""
        x = state.progress.step_features(n) @ self._read_step
        x += self._own[n]
        if state.previous is not None:
            x += state.previous
        for block, cache in zip(self._blocks, state.cache, strict=True):
            x = self._step(block, cache, x, n)
        hidden: Float32Array = state.progress.taken_features(n) @ self._read_taken  # [B, K, O]
        hidden += state.options[..., n, :, :]
        hidden += (_norm(x) @ self._read_state)[:, None]
        np.maximum(hidden, np.float32(0.0), out=hidden)
        hidden *= hidden
        logits: Float32Array = hidden @ self._score
        logits[~state.progress.problem.costs.feasible(n, state.progress.slack)] = -np.inf
        return logits

    def _step(self, block: _Block, cache: Float32Array, x: Float32Array, n: int) -> Float32Array:
        """One token x [B, D] through a block; `cache` [2, B, H, 2 N, D / H] gets its own keys and values."""
        B, D = x.shape
        qkv = (_norm(x) @ block.query_key_value).reshape(B, 3, self._num_heads, self._head_width)
        here = self.num_decisions + n
        cache[:, :, :, here] = qkv[:, 1:].transpose(1, 0, 2, 3)
        keys, values = cache[:, :, :, : here + 1]
        p = np.matmul(keys, qkv[:, 0, :, :, None])[..., 0]  # [B, H, N + n + 1]
        p -= np.maximum.reduce(p, axis=-1, keepdims=True)
        np.exp(p, out=p)
        attended = np.matmul(p[:, :, None], values)[:, :, 0]
        attended /= np.add.reduce(p, axis=-1, keepdims=True)  # fewer than what it is a mean of
        return _finish(block, x, attended.reshape(B, D))

    def _encode_decisions(self, x: Float32Array) -> Float32Array:
        """Keys and values [blocks, 2, H, N, D / H] of the prefix tokens x [N, D]."""
        prefix = []
        for block in self._blocks:
            N, D = x.shape
            q, k, v = (_norm(x) @ block.query_key_value).reshape(N, 3, self._num_heads, -1).transpose(1, 2, 0, 3)
            prefix.append(np.stack([k, v]))
            p = _softmax(np.matmul(q, k.transpose(0, 2, 1)))
            x = _finish(block, x, np.matmul(p, v).transpose(1, 0, 2).reshape(N, D))
        return np.stack(prefix)


@dataclass(eq=False)
class _Decoding:
    """One decoding in progress: what the option before adds to the next token [B, D], and the past of every block
    [2, B, H, 2 N, D / H]. What every option would add [(B,) N, K, D], and what it says to its own score [(B,) N, K, O],
    is worked out at the start; with B first if each row has costs of its own."""

    progress: Progress
    previous: Float32Array | None
    cache: Float32Array
    added: Float32Array
    options: Float32Array

    def take(self, n: int, chosen: IntArray) -> None:
        """Go on with `chosen` [B] in decision `n`."""
        self.progress.take(n, chosen)
        added = self.added[..., n, :, :]
        self.previous = added[chosen] if added.ndim == 2 else added[np.arange(len(chosen)), chosen]


def _finish(block: _Block, x: Float32Array, attended: Float32Array) -> Float32Array:
    """Residual streams [..., D] after `attended` [..., D], its heads side by side."""
    x = x + attended @ block.attention_out
    hidden = _norm(x) @ block.up
    np.maximum(hidden, np.float32(0.0), out=hidden)
    hidden *= hidden
    x += hidden @ block.down
    return x


def _centred(x: Float32Array) -> Float32Array:
    """x [..., D] less its mean over D."""
    centred: Float32Array = x - x.mean(axis=-1, keepdims=True)
    return centred


def _norm(x: Float32Array) -> Float32Array:
    """Layer norm without weights of x [..., D], whose mean is 0, over the root of D: see `_after_norm`."""
    length: Float32Array = np.vecdot(x, x)[..., None]
    length += NORM_EPSILON * np.float32(x.shape[-1])
    np.sqrt(length, out=length)
    normed: Float32Array = x / length
    return normed


def _after_norm(weight: Float32Array) -> Float32Array:
    """`weight` [D, O] of what reads from a norm, times the root of D that `_norm` leaves out."""
    scaled: Float32Array = weight * np.float32(weight.shape[0] ** 0.5)
    return scaled


def _softmax(scores: FloatT) -> FloatT:
    p: FloatT = np.exp(scores - np.maximum.reduce(scores, axis=-1, keepdims=True))
    p /= np.add.reduce(p, axis=-1, keepdims=True)
    return p
