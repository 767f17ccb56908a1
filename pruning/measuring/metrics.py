"""What one evaluation of a configuration measures, and who measures it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from pruning.anatomy.architecture import Architecture

Widths = tuple[int, ...]
"""FFN widths [L]."""


class FoldMetrics(NamedTuple):
    """As in `Metrics`, of one fold of the conversations."""

    kl: float
    accuracy: float
    agreement: float
    num_tokens: int
    num_answers: int


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

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types. Agreement is left out where it was not measured, as in documents from before it was."""
        document = asdict(self)
        del document["folds"]
        if self.agreement is None:
            del document["agreement"]
        return document


def exact_match_tells(dense: Metrics | None) -> bool:
    """Whether exact match tells configurations apart: where the dense model itself gives some answers exactly.

    Of long answers it gives none, and neither does what is cut from it. True where `dense` is not known.
    """
    return dense is None or dense.accuracy > 0


Evaluate = Callable[[Sequence[Architecture]], list[Metrics]]
"""Measures a model cut to each of n architectures; returns n Metrics in the same order."""
