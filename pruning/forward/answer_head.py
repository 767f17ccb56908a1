"""The output head on answer tokens: how a configuration's distributions compare with the dense model's.

With vocabularies of 49,152 or 151,936 words, logits [N, V] are the largest thing in an evaluation. They are never held
at once: the head goes through the vocabulary in blocks, and of each block's logits z only sums are kept. With p the
dense model's probabilities, KL(p || q) = sum p log p - (sum p z - log sum exp z), whose first term is known beforehand.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from pruning.anatomy.decoder_view import DecoderView
from pruning.forward.compute_dtype import compute_dtype

_BLOCK_LOGITS: Final = {"cpu": 2**18}
"""Of one block: 1 MB in float32 stays in a core's own cache between the product and the sums."""

_MOST_LOGITS: Final = 2**24
"""Of one block elsewhere: 64 MB in float32."""


@dataclass(frozen=True)
class DenseAnswers:
    """What the dense model says at N answer tokens.

    Attributes:
        hidden: [N, D] after the final norm.
        log_total: [N] log of the sum of exp of its logits.
        negative_entropy: [N] sum of p log p, in nats.
        chosen: [N] the most probable words.
        probabilities: [N, words] of each block; None: worked out anew from `hidden` each time.
    """

    hidden: torch.Tensor
    log_total: torch.Tensor
    negative_entropy: torch.Tensor
    chosen: torch.Tensor
    probabilities: tuple[torch.Tensor, ...] | None


@dataclass(frozen=True)
class Comparison:
    """Of N answer tokens: KL to the dense model and negative log-likelihood [N], in nats, and the words chosen [N]."""

    kl: torch.Tensor
    nll: torch.Tensor
    chosen: torch.Tensor


class AnswerHead:
    """The output head of a model, a block of the vocabulary at a time."""

    def __init__(self, view: DecoderView) -> None:
        self._head, self._softcap = view.linear_head(), view.softcap

    def probability_bytes(self, num_tokens: int) -> int:
        """What the dense model's probabilities at so many tokens take, in float32."""
        return 4 * num_tokens * len(self._head.weight)

    @torch.inference_mode()
    def dense_answers(self, hidden: torch.Tensor, *, keep_probabilities: bool) -> DenseAnswers:
        """What the dense model says, from its final hidden states [N, D]."""
        sums = _RunningSums(hidden)
        for start, logits in self._blocks(hidden):
            sums.add(start, logits)
        log_total = sums.log_total()
        expected, kept = torch.zeros_like(log_total), []
        for _, logits in self._blocks(hidden):
            p = _probabilities(logits, log_total)
            expected += _expectation(p, logits)
            if keep_probabilities:
                kept.append(p)
        probabilities = tuple(kept) if keep_probabilities else None
        return DenseAnswers(hidden, log_total, expected - log_total, sums.chosen, probabilities)

    @torch.inference_mode()
    def compare(self, hidden: torch.Tensor, dense: DenseAnswers, targets: torch.Tensor) -> Comparison:
        """A configuration's final hidden states [N, D] with what the dense model and the true tokens [N] say."""
        sums = _RunningSums(hidden)
        expected, of_target = torch.zeros_like(dense.log_total), torch.zeros_like(dense.log_total)
        for (start, logits), p in zip(self._blocks(hidden), self._dense_probabilities(dense), strict=True):
            expected += _expectation(p, logits)
            place = targets - start
            inside = (place >= 0) & (place < logits.shape[1])
            found = logits.gather(1, place.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
            of_target = torch.where(inside, found.double(), of_target)
            sums.add(start, logits)
        log_total = sums.log_total()
        return Comparison(dense.negative_entropy - (expected - log_total), log_total - of_target, sums.chosen)

    def _dense_probabilities(self, dense: DenseAnswers) -> Iterator[torch.Tensor]:
        if dense.probabilities is not None:
            yield from dense.probabilities
            return
        for _, logits in self._blocks(dense.hidden):
            yield _probabilities(logits, dense.log_total)

    def _blocks(self, hidden: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """First word and logits [N, words] of each block, in float32."""
        weight, bias = self._head.weight, self._head.bias
        dtype = compute_dtype(weight.dtype, weight.device)
        hidden = hidden.to(dtype)
        words = max(1, _BLOCK_LOGITS.get(weight.device.type, _MOST_LOGITS) // max(1, len(hidden)))
        for start in range(0, len(weight), words):
            part = slice(start, start + words)
            logits = nn.functional.linear(
                hidden, weight[part].to(dtype), None if bias is None else bias[part].to(dtype)
            ).float()
            if self._softcap is not None:
                logits = self._softcap * torch.tanh(logits / self._softcap)
            yield start, logits


class _RunningSums:
    """The log of the sum of exp of logits, and the word of the greatest, block after block."""

    def __init__(self, hidden: torch.Tensor) -> None:
        num_tokens, device = len(hidden), hidden.device
        self._greatest = torch.full((num_tokens,), -torch.inf, device=device)
        self._log_total = torch.full((num_tokens,), -torch.inf, dtype=torch.float64, device=device)
        self.chosen = torch.zeros(num_tokens, dtype=torch.long, device=device)

    def add(self, start: int, logits: torch.Tensor) -> None:
        """Take in a block [N, words] whose first word is `start`."""
        greatest = logits.amax(dim=1)
        # Of the log-softmax the greatest is minus the log of the sum relative to the greatest logit: small, so exact.
        own = greatest.double() - torch.log_softmax(logits, dim=1).amax(dim=1).double()
        self._log_total = torch.logaddexp(self._log_total, own)
        better = (greatest > self._greatest).nonzero()[:, 0]  # few, after the first blocks: argmax is slow
        self.chosen[better] = logits[better].argmax(dim=1) + start
        self._greatest = torch.maximum(self._greatest, greatest)

    def log_total(self) -> torch.Tensor:
        """[N] in float64."""
        return self._log_total


def _probabilities(logits: torch.Tensor, log_total: torch.Tensor) -> torch.Tensor:
    return (logits - log_total[:, None].float()).exp_()


def _expectation(p: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """[N] sum over a block's words of p times logit, in float64."""
    expectation: torch.Tensor = torch.linalg.vecdot(p, logits)
    return expectation.double()
