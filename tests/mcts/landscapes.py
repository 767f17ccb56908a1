"""Analytic models to search: what KL would be, without a network."""

from collections.abc import Callable, Sequence

import numpy as np

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.decoder_layer import DecoderLayer
from pruning.measuring.metrics import Metrics, Widths
from pruning.planning.ffn_spaces import ffn_space
from pruning.planning.limits import Limit, LimitKind, Limits
from pruning.planning.space import Choice, Space

FINGERPRINT = "0" * 64

EvaluateWidths = Callable[[Sequence[Widths]], list[Metrics]]
"""Measures FFN widths [n][L]."""


def make_anatomy(widths: Sequence[int], per_channel: Sequence[int] | int = 3) -> ModelAnatomy:
    prices = [per_channel] * len(widths) if isinstance(per_channel, int) else list(per_channel)
    layers = tuple(
        DecoderLayer(index, width, 4, 2, 8, price, width * price + 100)
        for index, (width, price) in enumerate(zip(widths, prices, strict=True))
    )
    total = sum(layer.parameters for layer in layers) + 1000
    return ModelAnatomy("llava", "llama", 32, 50, layers, total, "F32", FINGERPRINT)


def make_space(num_layers: int, num_options: int) -> Space:
    """Equal layers whose option k keeps k + 1 channels."""
    return ffn_space([list(range(1, num_options + 1))] * num_layers)


def limits_of(costs: Sequence[Sequence[int]], budget: int) -> Limits:
    """At most `budget`, where option k of layer l keeps and costs `costs[l][k]`."""
    rows = tuple(np.array(row, dtype=np.int64) for row in costs)
    return Limits(ffn_space(costs), (Limit(LimitKind.FFN_PARAMETERS, budget, 0, rows),))


def make_limits(num_layers: int, num_options: int, budget: int) -> Limits:
    """Of `make_space`: a channel costs 1."""
    return limits_of([list(range(1, num_options + 1))] * num_layers, budget)


def scoring(space: Space, evaluate: EvaluateWidths) -> Callable[[Sequence[Choice]], Sequence[Metrics]]:
    """Scores choices by what `evaluate` says of their widths."""
    return lambda choices: evaluate([space.units_of(choice) for choice in choices])


def metrics_of(kl: float) -> Metrics:
    return Metrics(kl=kl, nll=1.0 + kl, accuracy=0.5, num_tokens=100, num_answers=10)


class Landscape:
    """KL of FFN widths [n][L]: own damage of every layer, and damage that neighbours multiply.

    `kl` takes retentions [n, L] in [0, 1]. 0 when dense; rises whenever any layer shrinks.
    """

    def __init__(self, dense: Sequence[int], seed: int, scale: float = 1.0) -> None:
        rng = np.random.default_rng(seed)
        self._dense = np.asarray(dense, dtype=np.float64)
        self._own = np.exp(rng.normal(-4.0, 1.0, len(dense)))
        self._steep = rng.uniform(2.0, 5.0, len(dense))
        self._pair = rng.uniform(0.2, 3.0, len(dense) - 1)
        self._scale = scale
        self.calls: list[Widths] = []

    def kl(self, widths: np.ndarray) -> np.ndarray:
        removed = 1.0 - np.asarray(widths) / self._dense
        own = (self._own * np.expm1(self._steep * removed)).sum(axis=1)
        pairs = (0.05 * np.expm1(self._pair * removed[:, 1:] * removed[:, :-1] * 2.0)).sum(axis=1)
        total: np.ndarray = self._scale * (own + pairs + 0.5 * own * pairs)
        return total

    def __call__(self, widths: Sequence[Widths], /) -> list[Metrics]:
        self.calls += widths
        return [metrics_of(float(kl)) for kl in self.kl(np.asarray(widths))]


def evaluate_by(function: Callable[[Widths], float]) -> Callable[[Sequence[Widths]], list[Metrics]]:
    """An Evaluate that gives every configuration the KL `function` says."""
    return lambda widths: [metrics_of(function(w)) for w in widths]


class NetworkLandscape:
    """KL of FFN widths [n][L] of a random residual network that is really cut: decisions interact as they do there.

    Layer l adds `out[:, :w] relu(into[:w] rms_norm(x))` to x, its channels in the order of what they add on average; KL
    is that of the dense network's softmax to the cut one's, averaged over T random inputs. `width` is that of x.
    """

    def __init__(self, dense: Sequence[int], seed: int, *, width: int = 16, num_inputs: int = 64) -> None:
        rng = np.random.default_rng(seed)
        self._inputs = rng.normal(size=(num_inputs, width))
        self._head = rng.normal(size=(width, 12)) / np.sqrt(width)
        self._layers: list[tuple[np.ndarray, np.ndarray]] = []
        x = self._inputs
        for channels in dense:
            into = rng.normal(size=(width, channels)) * np.exp(rng.normal(0.0, 0.7, channels))
            out = rng.normal(size=(channels, width)) * np.exp(rng.normal(-1.0, 0.7)) / np.sqrt(channels)
            added = np.maximum(_normed(x) @ into, 0.0)
            order = np.argsort(-added.mean(axis=0) * np.linalg.norm(out, axis=1), kind="stable")
            self._layers.append((into[:, order], out[order]))
            x = x + added @ out
        self._dense = self._log_probabilities(tuple(dense))
        self.calls: list[Widths] = []

    def __call__(self, widths: Sequence[Widths], /) -> list[Metrics]:
        self.calls += widths
        return [metrics_of(self.kl(w)) for w in widths]

    def kl(self, widths: Widths) -> float:
        found = self._log_probabilities(widths)
        return max(0.0, float((np.exp(self._dense) * (self._dense - found)).sum(axis=1).mean()))

    def _log_probabilities(self, widths: Widths) -> np.ndarray:
        x = self._inputs
        for (into, out), w in zip(self._layers, widths, strict=True):
            x = x + np.maximum(_normed(x) @ into[:, :w], 0.0) @ out[:w]
        logits = _normed(x) @ self._head
        log_probabilities: np.ndarray = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return log_probabilities


def _normed(x: np.ndarray) -> np.ndarray:
    """Rows of mean square 1."""
    normed: np.ndarray = x / np.sqrt((x**2).mean(axis=1, keepdims=True))
    return normed
