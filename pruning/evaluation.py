"""Scoring configurations: KL to the dense model, negative log-likelihood and exact match on answer tokens.

Channels are put in ranking order once; then every configuration is a prefix slice of the same weights: no copy, no
mask, and the narrower forward is really cheaper. The vision tower and the projector run once, for all configurations.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pruning.anatomy_reader import anatomy_of
from pruning.batches import Batch
from pruning.decoder import decoder_inputs, decoder_view
from pruning.errors import InputError
from pruning.metrics import Metrics
from pruning.ranking import Ranking

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class _AnswerTokens:
    """The answers of one batch, flattened to N tokens.

    Attributes:
        rows, positions: [N] where the logits that predict each token stand.
        targets: [N] token ids.
        answer: [N] which answer of the batch each token belongs to.
        num_answers: answers in the batch.
        dense_hidden: [N, D] final hidden states of the dense model: D floats a token instead of the V of its logits.
    """

    rows: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    answer: torch.Tensor
    num_answers: int
    dense_hidden: torch.Tensor


class ConfigurationEvaluator:
    """Scores FFN widths of one model on fixed conversations.

    Takes the model over: its FFN channels are reordered in place, which leaves its function as it was, and its
    projections become slices while a configuration is evaluated. Call it from one thread at a time.

    On a CPU, batches run side by side, each on one thread: small matrices gain little from several threads, and the
    numbers do not depend on how many cores there are.
    """

    def __init__(self, model: "PreTrainedModel", batches: Sequence[Batch], ranking: Ranking) -> None:
        anatomy = anatomy_of(model)
        ranking.check(anatomy)
        self._view = decoder_view(model.eval())
        self._dense_widths = tuple(x.ffn_width for x in anatomy.layers)
        self._inputs = decoder_inputs(model, batches)
        self._weights: list[list[tuple[nn.Linear, torch.Tensor, torch.Tensor | None]]] = []
        with torch.no_grad():
            for layer, order in enumerate(ranking.ffn):
                self._weights.append(self._reorder(layer, torch.from_numpy(order).long().to(model.device)))
        workers = min(torch.get_num_threads(), len(batches)) if model.device.type == "cpu" else 1
        self._pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
        self._answers = list(self._pool.map(self._answer_tokens, batches, self._inputs))

    def __call__(self, configurations: Sequence[tuple[int, ...]]) -> list[Metrics]:
        """Metrics of each configuration, given as FFN widths [n][L]; the model is dense again afterwards."""
        return [self.evaluate(widths) for widths in configurations]

    def evaluate(self, widths: Sequence[int]) -> Metrics:
        """Metrics of one configuration [L]; raises InputError for a width outside 1..dense."""
        if len(widths) != len(self._dense_widths) or any(
            not 1 <= w <= d for w, d in zip(widths, self._dense_widths, strict=False)
        ):
            raise InputError(
                "a configuration has a width between 1 and dense for every layer",
                values=f"{list(widths)}, dense {list(self._dense_widths)}",
            )
        self._slice(widths)
        try:
            measured = list(self._pool.map(self._measure, self._inputs, self._answers))
        finally:
            self._slice(self._dense_widths)
        tokens = sum(len(answers.targets) for answers in self._answers)
        num_answers = sum(answers.num_answers for answers in self._answers)
        kl, nll = (sum(batch[part] for batch in measured) / tokens for part in (0, 1))
        correct = sum(batch[2] for batch in measured)
        return Metrics(kl, nll, correct / num_answers, tokens, num_answers)

    @torch.inference_mode()
    def _measure(self, inputs: dict[str, Any], answers: _AnswerTokens) -> tuple[float, float, int]:
        """One batch: summed KL, summed NLL, and the number of answers that are right."""
        hidden = self._hidden(inputs)[answers.rows, answers.positions]
        log_p = self._log_probabilities(hidden)
        log_dense = self._log_probabilities(answers.dense_hidden)
        # Rounding can take a KL of zero below it.
        kl = max(0.0, float((log_dense.exp() * (log_dense - log_p)).sum()))
        nll = -float(log_p.gather(1, answers.targets[:, None]).sum())
        wrong = torch.zeros(answers.num_answers, dtype=torch.bool, device=hidden.device)
        wrong[answers.answer[log_p.argmax(dim=1) != answers.targets]] = True
        return kl, nll, int((~wrong).sum())

    @property
    def dense_widths(self) -> tuple[int, ...]:
        """FFN widths [L] of the unpruned model."""
        return self._dense_widths

    def _reorder(self, layer: int, order: torch.Tensor) -> list[tuple[nn.Linear, torch.Tensor, torch.Tensor | None]]:
        """Permute the channels of one FFN in place; returns its projections with their full weights."""
        full: list[tuple[nn.Linear, torch.Tensor, torch.Tensor | None]] = []
        for linear in self._view.in_projections(layer):
            linear.weight.copy_(linear.weight[order])
            if linear.bias is not None:
                linear.bias.copy_(linear.bias[order])
            full.append((linear, linear.weight.data, None if linear.bias is None else linear.bias.data))
        out = self._view.out_projection(layer)
        out.weight.copy_(out.weight[:, order])
        full.append((out, out.weight.data, None))
        return full

    def _slice(self, widths: Sequence[int]) -> None:
        for width, projections in zip(widths, self._weights, strict=True):
            *into, (out, out_weight, _) = projections
            for linear, weight, bias in into:
                linear.weight = nn.Parameter(weight[:width], requires_grad=False)
                if bias is not None:
                    linear.bias = nn.Parameter(bias[:width], requires_grad=False)
            out.weight = nn.Parameter(out_weight[:, :width], requires_grad=False)

    def _hidden(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Final hidden states [B, T, D]."""
        output: torch.Tensor = self._view.decoder(**inputs, use_cache=False).last_hidden_state
        return output

    def _log_probabilities(self, hidden: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [N, V] in float32."""
        return torch.log_softmax(self._view.head(hidden).float(), dim=-1)

    @torch.inference_mode()
    def _answer_tokens(self, batch: Batch, inputs: dict[str, Any]) -> _AnswerTokens:
        rows, positions, answer = [], [], []
        for index, span in enumerate(batch.spans):
            for position in range(span.start, span.stop):
                rows.append(span.row)
                positions.append(position)
                answer.append(index)
        device = inputs["inputs_embeds"].device
        row, token = torch.tensor(rows, device=device), torch.tensor(positions, device=device)
        targets = batch.inputs["input_ids"].to(device)[row, token]
        hidden = self._hidden(inputs)[row, token - 1]
        return _AnswerTokens(row, token - 1, targets, torch.tensor(answer, device=device), len(batch.spans), hidden)


@torch.inference_mode()
def evaluate_model(
    model: "PreTrainedModel", batches: Sequence[Batch], dense: "PreTrainedModel | None" = None
) -> Metrics:
    """Metrics of a model as it stands, dense or really cut, by whole forward passes of the unmodified network.

    KL is to `dense`; without one it is 0, the model compared with itself.
    """
    kl = nll = 0.0
    tokens = answers = correct = 0
    for batch in batches:
        log_p = _answer_log_probabilities(model, batch)
        log_dense = _answer_log_probabilities(dense, batch) if dense is not None else log_p
        start = 0
        for span in batch.spans:
            stop = start + span.stop - span.start
            targets = batch.inputs["input_ids"][span.row, span.start : span.stop].to(log_p.device)
            predicted = log_p[start:stop]
            nll -= float(predicted.gather(1, targets[:, None]).sum())
            correct += bool((predicted.argmax(dim=1) == targets).all())
            start = stop
        kl += max(0.0, float((log_dense.exp() * (log_dense - log_p)).sum()))
        tokens += start
        answers += len(batch.spans)
    return Metrics(kl / tokens, nll / tokens, correct / answers, tokens, answers)


def _answer_log_probabilities(model: "PreTrainedModel", batch: Batch) -> torch.Tensor:
    """Log-probabilities [N, V] of the positions that predict the batch's answer tokens, in order."""
    logits = model(**{k: v.to(model.device) for k, v in batch.inputs.items()}, use_cache=False).logits
    picked = [logits[span.row, span.start - 1 : span.stop - 1] for span in batch.spans]
    return torch.log_softmax(torch.cat(picked).float(), dim=-1)
