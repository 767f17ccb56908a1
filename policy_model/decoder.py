"""The trained policy as requests use it: numpy, one token a decision, the keys and values of the past kept.

A decision is some sixty operations on a few hundred numbers; torch spends more time on calling them than on doing them.
The mean that every norm takes off is taken off the weights instead, once: what is written to the residual stream is
centred, so the stream always is, and a norm only has to scale it (as SliceGPT turns LayerNorm into RMSNorm, arXiv
2401.15024, section 3.2).
Letters: B candidates, L decoder layers, K levels, D model width, H heads.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from policy_model.costs import DecisionCosts
from pruning.arrays import FloatArray, IntArray

Float32Array = NDArray[np.float32]
FloatT = TypeVar("FloatT", Float32Array, FloatArray)

NORM_EPSILON = np.float32(1e-5)
"""Of torch's `layer_norm`."""


def gumbel_noise(num_layers: int, batch: int, num_levels: int, seed: int) -> Float32Array:
    """[L, B, K] noise for `PolicyDecoder.decode`, zero for candidate 0, which is therefore the greedy one."""
    noise = np.random.default_rng(seed).gumbel(size=(num_layers, batch, num_levels)).astype(np.float32)
    noise[:, 0] = 0.0
    return noise


@dataclass(frozen=True, eq=False)
class _Block:
    """The weights of one block; those that write to the residual stream are centred."""

    query_key_value: Float32Array
    attention_out: Float32Array
    up: Float32Array
    down: Float32Array

    @classmethod
    def of(cls, weights: Mapping[str, Float32Array], index: int) -> "_Block":
        found = {name: weights[f"blocks.{index}.{name}.weight"] for name in _BLOCK_WEIGHTS}
        return cls(**{name: _centred(w) if name in _WRITING else w for name, w in found.items()})


_BLOCK_WEIGHTS = ("query_key_value", "attention_out", "up", "down")
_WRITING = ("attention_out", "down")


class PolicyDecoder:
    """Immutable, so threads may share it.

    Args:
        weights: the state of a `Policy`, by its names.
        num_heads: H.
        features: [L, F] static features of the layers.
    """

    def __init__(self, weights: Mapping[str, Float32Array], num_heads: int, features: FloatArray) -> None:
        num_blocks = sum(name.endswith(".up.weight") for name in weights)
        self._blocks = [_Block.of(weights, index) for index in range(num_blocks)]
        self._num_heads = num_heads
        own = features.astype(np.float32) @ weights["read_layer.weight"].T + weights["read_layer.bias"]
        # What a decision's token is made of, but for step features and the level before.
        self._own = _centred(own + weights["decision_position"] + weights["read_step.bias"])
        self._read_step = _centred(weights["read_step.weight"].T)
        self._previous = _centred(weights["previous_level.weight"])
        self._head, self._head_bias = np.ascontiguousarray(weights["head.weight"].T), weights["head.bias"]
        self._prefix = self._encode_layers(_centred(own + weights["layer_position"]))

    @property
    def num_layers(self) -> int:
        return len(self._own)

    @property
    def num_levels(self) -> int:
        return len(self._head_bias)

    def decode(self, costs: DecisionCosts, slack: IntArray, noise: Float32Array) -> IntArray:
        """Levels [B, L] that keep to `slack` [B, J].

        Each level is the argmax of log-probability plus `noise` [L, B, K]: Gumbel noise makes it a sample, none the
        most likely level.
        """
        state = self._start(costs, slack)
        levels = np.empty((len(slack), self.num_layers), dtype=np.int64)
        for layer in range(self.num_layers):
            # Log-probabilities are logits but for a constant, which argmax does not see.
            level = (self._logits(state, layer) + noise[layer]).argmax(axis=1)
            levels[:, layer] = level
            state.take(layer, level)
        return levels

    def next_level(self, costs: DecisionCosts, slack: IntArray, levels: IntArray) -> FloatArray:
        """[K] probabilities of the layer after `levels` [l] were chosen of `slack` [J]; l < L."""
        state = self._start(costs, slack[None])
        for layer, level in enumerate(levels):
            self._logits(state, layer)
            state.take(layer, np.array([level]))
        return _softmax(self._logits(state, len(levels))[0].astype(np.float64))

    def _start(self, costs: DecisionCosts, slack: IntArray) -> "_Decoding":
        """Keys and values are the layer tokens' first, then those of the decisions made."""
        B, L = len(slack), self.num_layers
        cache = np.empty((len(self._blocks), 2, B, self._num_heads, 2 * L, self._head_width), dtype=np.float32)
        cache[:, :, :, :, :L] = self._prefix[:, :, None]
        return _Decoding(costs, slack, costs.asked_features(slack), np.full(B, self.num_levels), cache)

    @property
    def _head_width(self) -> int:
        return int(self._own.shape[1]) // self._num_heads

    def _logits(self, state: "_Decoding", layer: int) -> Float32Array:
        """[B, K] of `layer`, -inf where infeasible."""
        features = state.costs.step_features(layer, state.slack, state.asked).astype(np.float32)
        x = features @ self._read_step
        x += self._own[layer]
        x += self._previous[state.previous]
        for block, cache in zip(self._blocks, state.cache, strict=True):
            x = self._step(block, cache, x, layer)
        logits: Float32Array = _norm(x) @ self._head
        logits += self._head_bias
        logits[~state.costs.feasible(layer, state.slack)] = -np.inf
        return logits

    def _step(self, block: _Block, cache: Float32Array, x: Float32Array, layer: int) -> Float32Array:
        """One token x [B, D] through a block; `cache` [2, B, H, 2 L, D / H] gets its own keys and values."""
        B, D = x.shape
        qkv = (_norm(x) @ block.query_key_value).reshape(B, 3, self._num_heads, self._head_width)
        here = self.num_layers + layer
        cache[:, :, :, here] = qkv[:, 1:].transpose(1, 0, 2, 3)
        keys, values = cache[:, :, :, : here + 1]
        q = qkv[:, 0] * np.float32(self._head_width**-0.5)  # [B, H, D / H]
        p = _softmax(np.matmul(keys, q[..., None])[..., 0])
        attended = np.matmul(p[:, :, None], values)
        return _finish(block, x, attended.reshape(B, D))

    def _encode_layers(self, x: Float32Array) -> Float32Array:
        """Keys and values [blocks, 2, H, L, D / H] of the layer tokens x [L, D]."""
        prefix = []
        for block in self._blocks:
            L, D = x.shape
            q, k, v = (_norm(x) @ block.query_key_value).reshape(L, 3, self._num_heads, -1).transpose(1, 2, 0, 3)
            prefix.append(np.stack([k, v]))
            p = _softmax(np.matmul(q * np.float32(self._head_width**-0.5), k.transpose(0, 2, 1)))
            x = _finish(block, x, np.matmul(p, v).transpose(1, 0, 2).reshape(L, D))
        return np.stack(prefix)


@dataclass(eq=False)
class _Decoding:
    """One decoding in progress: what is left, the level before, and the past of every block [2, B, H, 2 L, D / H]."""

    costs: DecisionCosts
    slack: IntArray
    asked: FloatArray
    previous: IntArray
    cache: Float32Array

    def take(self, layer: int, levels: IntArray) -> None:
        """Go on with `levels` [B] in `layer`."""
        self.slack = self.costs.after(layer, self.slack, levels)
        self.previous = levels


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
    """Layer norm without weights of x [..., D], whose mean is 0."""
    variance = np.einsum("...d,...d->...", x, x)[..., None] * np.float32(1.0 / x.shape[-1])
    normed: Float32Array = x / np.sqrt(variance + NORM_EPSILON)
    return normed


def _softmax(scores: FloatT) -> FloatT:
    p: FloatT = np.exp(scores - np.maximum.reduce(scores, axis=-1, keepdims=True))
    p /= np.add.reduce(p, axis=-1, keepdims=True)
    return p
