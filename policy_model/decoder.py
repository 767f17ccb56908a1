"""The trained policy as requests use it: numpy, one token a decision, the keys and values of the past kept.

A decision is some sixty operations on a few hundred numbers; torch spends more time on calling them than on doing them.
Letters: B candidates, L decoder layers, K levels, D model width, H heads.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policy_model.costs import LevelCosts
from pruning.arrays import FloatArray, IntArray

Float32Array = NDArray[np.float32]

NORM_EPSILON = np.float32(1e-5)
"""Of torch's `layer_norm`."""


def gumbel_noise(num_layers: int, batch: int, num_levels: int, seed: int) -> Float32Array:
    """[L, B, K] noise for `PolicyDecoder.decode`, zero for candidate 0, which is therefore the greedy one."""
    noise = np.random.default_rng(seed).gumbel(size=(num_layers, batch, num_levels)).astype(np.float32)
    noise[:, 0] = 0.0
    return noise


@dataclass(frozen=True, eq=False)
class _Block:
    """The weights of one block."""

    query_key_value: Float32Array
    attention_out: Float32Array
    up: Float32Array
    down: Float32Array


class PolicyDecoder:
    """Immutable, so threads may share it.

    Args:
        weights: the state of a `Policy`, by its names.
        num_heads: H.
        features: [L, F] static features of the layers.
    """

    def __init__(self, weights: Mapping[str, Float32Array], num_heads: int, features: FloatArray) -> None:
        names = ("query_key_value", "attention_out", "up", "down")
        num_blocks = sum(name.endswith(".up.weight") for name in weights)
        self._blocks = [
            _Block(**{name: weights[f"blocks.{index}.{name}.weight"] for name in names}) for index in range(num_blocks)
        ]
        self._num_heads = num_heads
        own = features.astype(np.float32) @ weights["read_layer.weight"].T + weights["read_layer.bias"]
        # What a decision's token is made of, but for step features and the level before.
        self._own = own + weights["decision_position"] + weights["read_step.bias"]
        self._read_step = np.ascontiguousarray(weights["read_step.weight"].T)
        self._previous = weights["previous_level.weight"]
        self._head, self._head_bias = np.ascontiguousarray(weights["head.weight"].T), weights["head.bias"]
        self._prefix = self._encode_layers(own + weights["layer_position"])

    @property
    def num_layers(self) -> int:
        return len(self._own)

    @property
    def num_levels(self) -> int:
        return len(self._head_bias)

    def decode(self, costs: LevelCosts, slack: IntArray, noise: Float32Array) -> tuple[IntArray, FloatArray]:
        """0-based levels [B, L] that keep to `slack` [B, J], and their log-probabilities [B, L].

        Each level is the argmax of log-probability plus `noise` [L, B, K]: Gumbel noise makes it a sample, none the
        most likely level.
        """
        B, L = len(slack), self.num_layers
        state = self._start(costs, slack)
        levels = np.empty((B, L), dtype=np.int64)
        chosen = np.empty((B, L))
        for layer in range(L):
            log_p = self._decide(state, layer)
            level = (log_p + noise[layer]).argmax(axis=1)
            levels[:, layer] = level
            chosen[:, layer] = log_p[np.arange(B), level]
            state.take(layer, level)
        return levels, chosen

    def next_level(self, costs: LevelCosts, slack: IntArray, levels: IntArray) -> FloatArray:
        """[K] probabilities of the layer after the 0-based `levels` [l] were chosen of `slack` [J]; l < L."""
        state = self._start(costs, slack[None])
        for layer, level in enumerate(levels):
            self._decide(state, layer)
            state.take(layer, np.array([level]))
        probabilities: FloatArray = np.exp(self._decide(state, len(levels))[0].astype(np.float64))
        return probabilities

    def _start(self, costs: LevelCosts, slack: IntArray) -> "_Decoding":
        shape = (len(self._blocks), 2, len(slack), self._num_heads, self.num_layers, self._head_width)
        return _Decoding(
            costs,
            slack,
            costs.asked_features(slack),
            np.full(len(slack), self.num_levels),
            np.empty(shape, dtype=np.float32),
        )

    @property
    def _head_width(self) -> int:
        return int(self._own.shape[1]) // self._num_heads

    def _decide(self, state: "_Decoding", layer: int) -> Float32Array:
        """Log-probabilities [B, K] of `layer`, -inf where infeasible."""
        features = state.costs.step_features(layer, state.slack, state.asked).astype(np.float32)
        x = features @ self._read_step
        x += self._own[layer]
        x += self._previous[state.previous]
        for block, prefix, cache in zip(self._blocks, self._prefix, state.cache, strict=True):
            x = self._step(block, prefix, cache, x, layer)
        logits = _norm(x) @ self._head + self._head_bias
        logits[~state.costs.feasible(layer, state.slack)] = -np.inf
        logits -= logits.max(axis=1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return logits

    def _step(
        self, block: _Block, prefix: Float32Array, cache: Float32Array, x: Float32Array, layer: int
    ) -> Float32Array:
        """One token x [B, D] through a block; `prefix` [2, H, L, D / H], `cache` [2, B, H, L, D / H] gets its own."""
        B, D = x.shape
        qkv = (_norm(x) @ block.query_key_value).reshape(B, 3, self._num_heads, self._head_width)
        cache[:, :, :, layer] = qkv[:, 1:].transpose(1, 0, 2, 3)
        keys, values = cache[:, :, :, : layer + 1]
        q = qkv[:, 0] * np.float32(self._head_width**-0.5)  # [B, H, D / H]
        to_prefix = np.matmul(q.transpose(1, 0, 2), prefix[0].transpose(0, 2, 1)).transpose(1, 0, 2)  # [B, H, L]
        to_past = np.matmul(keys, q[..., None])[..., 0]
        scores = np.concatenate([to_prefix, to_past], axis=2)
        p = _softmax(scores)
        L = prefix.shape[2]
        attended = np.matmul(p[:, :, :L].transpose(1, 0, 2), prefix[1]).transpose(1, 0, 2)
        attended = attended + np.matmul(p[:, :, None, L:], values)[:, :, 0]
        return _finish(block, x, attended.reshape(B, D))

    def _encode_layers(self, x: Float32Array) -> list[Float32Array]:
        """Keys and values [2, H, L, D / H] per block of the layer tokens x [L, D]."""
        prefix = []
        for block in self._blocks:
            L, D = x.shape
            q, k, v = (_norm(x) @ block.query_key_value).reshape(L, 3, self._num_heads, -1).transpose(1, 2, 0, 3)
            prefix.append(np.stack([k, v]))
            p = _softmax(np.matmul(q * np.float32(self._head_width**-0.5), k.transpose(0, 2, 1)))
            x = _finish(block, x, np.matmul(p, v).transpose(1, 0, 2).reshape(L, D))
        return prefix


@dataclass(eq=False)
class _Decoding:
    """One decoding in progress: what is left, the level before, and the past of every block [2, B, H, L, D / H]."""

    costs: LevelCosts
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
    hidden = np.maximum(_norm(x) @ block.up, np.float32(0.0))
    hidden *= hidden
    out: Float32Array = x + hidden @ block.down
    return out


def _norm(x: Float32Array) -> Float32Array:
    scale = np.float32(1.0 / x.shape[-1])
    centred = x - np.add.reduce(x, axis=-1, keepdims=True) * scale
    variance = np.add.reduce(centred * centred, axis=-1, keepdims=True) * scale
    normed: Float32Array = centred / np.sqrt(variance + NORM_EPSILON)
    return normed


def _softmax(scores: Float32Array) -> Float32Array:
    p = np.exp(scores - np.maximum.reduce(scores, axis=-1, keepdims=True))
    p /= np.add.reduce(p, axis=-1, keepdims=True)
    return p
