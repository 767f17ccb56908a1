"""What one evaluation of a configuration measures, and who measures it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from pruning.anatomy.architecture import Architecture

Widths = tuple[int, ...]
"""FFN widths [L]."""


class FoldMetrics(NamedTuple):
    """As in `Metrics`, of one fold of the conversations.

    `root_kl` is the mean over answer tokens of the square root of their KL, in nats^(1/2); None in samples from before
    it was measured.
    """

    kl: float
    accuracy: float
    agreement: float
    num_tokens: int
    num_answers: int
    root_kl: float | None = None


@dataclass(frozen=True, slots=True)
class Metrics:
    """Raw metrics of a configuration on one set of conversations. Never overwritten once stored.

    Attributes:
        kl: mean over answer tokens of KL(dense || pruned), in nats.
        nll: mean negative log-likelihood of the answer tokens under the pruned model, in nats.
        accuracy: fraction of answers whose every token is the pruned model's first choice, given the true
            history: the answers that greedy generation would give exactly.
        num_tokens: answer tokens averaged over.
        num_answers: answers averaged over.
        agreement: fraction of answer tokens at which the pruned model's first choice is the dense model's, given the
            true history; None where it was not measured (samples from before there was this metric, or no dense model
            to compare with). Says something of long answers too, which hardly any model gives exactly.
        folds: of each fold of the conversations (`pruning.data.folds`) alone; None where they are too few for folds,
            and in samples from before there were any. Stored with samples, and in no other document.
    """

    kl: float
    nll: float
    accuracy: float
    num_tokens: int
    num_answers: int
    agreement: float | None = None
    folds: tuple[FoldMetrics, ...] | None = None

    @property
    def score(self) -> float:
        """What searches minimise, in nats: the squared mean root KL of the answer tokens; KL itself without folds.

        A few tokens make most of a mean KL, and others do on other conversations. A mean of roots counts how many are
        disturbed as well as how much, so it tells better what is good there (docs/unseen.md).
        """
        if self.is_scored_by_kl:
            return self.kl
        roots = sum((fold.root_kl or 0.0) * fold.num_tokens for fold in self.folds or ())
        return float((roots / sum(fold.num_tokens for fold in self.folds or ())) ** 2)

    @property
    def is_scored_by_kl(self) -> bool:
        """Whether its score is nothing but its KL: without folds, or with those from before root KL."""
        return scored_by_kl(self.folds)

    def scored_by_kl(self) -> "Metrics":
        """The same without root KL."""
        if self.is_scored_by_kl or self.folds is None:
            return self
        return replace(self, folds=tuple(fold._replace(root_kl=None) for fold in self.folds))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types. Agreement is left out where it was not measured, as in documents from before it was."""
        document = asdict(self)
        del document["folds"]
        if self.agreement is None:
            del document["agreement"]
        return document


def scored_by_kl(folds: Sequence[FoldMetrics] | None) -> bool:
    """Whether what is known by these `folds` is scored by KL, as `Metrics.is_scored_by_kl`."""
    return folds is None or any(fold.root_kl is None for fold in folds)


def exact_match_tells(dense: Metrics | None) -> bool:
    """Whether exact match tells configurations apart: where the dense model itself gives some answers exactly.

    Of long answers it gives none, and neither does what is cut from it. True where `dense` is not known.
    """
    return dense is None or dense.accuracy > 0


Evaluate = Callable[[Sequence[Architecture]], list[Metrics]]
"""Measures a model cut to each of n architectures; returns n Metrics in the same order."""
