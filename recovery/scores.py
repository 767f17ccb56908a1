"""What is known of every answer of a part, and how sure figures over answers are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from pruning.arrays import FloatArray, IntArray
from pruning.measuring.bootstrap import percentiles, resampled

LEVEL = 0.9

FEW_ANSWERS: Final = 20
"""Below so many the bootstrap's interval alone decides nothing, as it is too narrow: of models that are no better it
takes 10 to 14% of five answers, 25% of two and half of one, where it should take 5%; from twenty on about 6%."""

LEAST_ANSWERS: Final = 5
"""So few can show a gain at all: each nearer to the dense model than before, which is chance in 1 of 2^5 cases."""


@dataclass(frozen=True)
class AnswerScores:
    """Of n answers, each array [n]; models are told the true history.

    Attributes:
        kl: KL(dense || model) in nats, summed over the answer's tokens.
        nll: negative log-likelihood in nats, summed.
        tokens: how many it has.
        agreeing: at how many of them the first choice is the dense model's.
        correct: 1 if the first choice is right at all of them.
    """

    kl: FloatArray
    nll: FloatArray
    tokens: FloatArray
    agreeing: FloatArray
    correct: FloatArray

    @property
    def mean_kl(self) -> float:
        """Nats a token."""
        return float(self.kl.sum() / self.tokens.sum())

    @property
    def accuracy(self) -> float:
        """Share of the answers that are exact."""
        return float(self.correct.mean())

    @property
    def agreement(self) -> float:
        """Share of the tokens."""
        return float(self.agreeing.sum() / self.tokens.sum())

    def document(self) -> dict[str, float]:
        """Means over tokens, shares of answers; plain JSON types."""
        return {
            "kl": self.mean_kl,
            "nll": float(self.nll.sum() / self.tokens.sum()),
            "accuracy": self.accuracy,
            "agreement": self.agreement,
        }

    def columns(self) -> tuple[FloatArray, ...]:
        """All five, in their order."""
        return self.kl, self.nll, self.tokens, self.agreeing, self.correct

    def at(self, indices: IntArray) -> "AnswerScores":
        """Of these answers alone."""
        return AnswerScores(*(array[indices] for array in self.columns()))


def interval(statistic: Callable[[IntArray], float], num_answers: int) -> tuple[float, float]:
    """The 90% interval of `statistic`, a function of answers' indices [n]; draws that have no value do not count."""
    return percentiles(resampled(statistic, num_answers), LEVEL)


def percent_of_dense(model: AnswerScores, dense: AnswerScores) -> dict[str, Any]:
    """Exact answers over those of the dense model, in percent, with the interval; of agreement where it has none.

    `of` says which. Agreement of the dense model with itself is 1.
    """
    if dense.correct.sum() == 0:
        low, high = interval(lambda i: float(model.agreeing[i].sum() / model.tokens[i].sum()), len(model.tokens))
        return {"of": "agreement", "percent": 100 * model.agreement, "interval": [100 * low, 100 * high]}

    def ratio(indices: IntArray) -> float:
        exact = dense.correct[indices].sum()
        return float(model.correct[indices].sum() / exact) if exact else float("nan")

    low, high = interval(ratio, len(model.tokens))
    whole = ratio(np.arange(len(model.tokens)))
    return {"of": "accuracy", "percent": 100 * whole, "interval": [100 * low, 100 * high]}


def kl_change(after: AnswerScores, before: AnswerScores) -> tuple[float, float]:
    """The 90% interval of how much mean KL rose, in nats a token, on the same answers."""
    rise = after.kl - before.kl
    return interval(lambda i: float(rise[i].sum() / before.tokens[i].sum()), len(rise))


def accuracy_change(after: AnswerScores, before: AnswerScores) -> tuple[float, float]:
    """The 90% interval of how much the share of exact answers rose, on the same answers."""
    rise = after.correct - before.correct
    return interval(lambda i: float(rise[i].mean()), len(rise))


def chance_of_gain(after: AnswerScores, before: AnswerScores) -> float:
    """How often KL would fall as far if every answer could as well have got worse by as much as it got better.

    That is the share of all 2^n choices of signs (Fisher's randomisation test), counted: n is below `FEW_ANSWERS`.
    """
    gains = before.kl - after.kl
    sums = np.zeros(1)
    for gain in gains:
        sums = np.concatenate([sums + gain, sums - gain])
    rounding = 1e-12 * float(np.abs(gains).sum())
    return float(np.mean(sums >= sums[0] - rounding))


def beats(candidate: AnswerScores, start: AnswerScores) -> bool:
    """Whether a model is better than the one it was trained from: nearer to the dense model beyond the noise of the
    answers, and with as many exact answers. What it says of the data's own answers does not decide: data may be bad.

    Beyond the noise: the interval of the change in KL is below zero; of few answers, that is also no chance.
    """
    if candidate.accuracy < start.accuracy or not kl_change(candidate, start)[1] < 0:
        return False
    return len(start.tokens) >= FEW_ANSWERS or chance_of_gain(candidate, start) <= (1 - LEVEL) / 2
