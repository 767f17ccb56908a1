"""Scoring configurations: KL to and agreement with the dense model, negative log-likelihood and exact match on answers.

Channels are put in ranking order once; then every configuration is a prefix slice of the same weights: no copy, no
mask, and the narrower forward is really cheaper. The vision tower and the projector run once, for all configurations;
layers that a configuration shares with an earlier one are not run again; the output head sees answer tokens only.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pruning.anatomy_reader import anatomy_of
from pruning.batches import Batch
from pruning.compensation import compensated_bias
from pruning.decoder import decoder_inputs, decoder_view
from pruning.errors import InputError
from pruning.layerwise import LayerCalls, record_layer_calls, without_causal_mask
from pruning.metrics import Metrics
from pruning.prefix_cache import PrefixCache, default_cache_bytes
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


@dataclass(frozen=True)
class _PreparedBatch:
    """What is the same for every configuration, and the hidden states that some share."""

    calls: LayerCalls
    answers: _AnswerTokens
    prefixes: PrefixCache


class ConfigurationEvaluator:
    """Scores FFN widths of one model on fixed conversations.

    Takes the model over: its FFN channels are reordered in place, which leaves its function as it was, and its
    projections become slices while a configuration is evaluated. Call it from one thread at a time.

    On a CPU, batches run side by side, each on one thread: small matrices gain little from several threads, and the
    numbers do not depend on how many cores there are. Nor do they depend on what was evaluated before.

    Args:
        cache_bytes: bound of the hidden states kept for configurations that begin alike; 0 keeps none, None is
            `default_cache_bytes`.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        batches: Sequence[Batch],
        ranking: Ranking,
        *,
        cache_bytes: int | None = None,
    ) -> None:
        anatomy = anatomy_of(model)
        ranking.check(anatomy)
        self._view = decoder_view(model.eval())
        self._dense_widths = tuple(x.ffn_width for x in anatomy.layers)
        implementation = model.config.get_text_config(decoder=True)._attn_implementation
        self._knows_causal = implementation == "sdpa" and self._view.is_causal
        self._ranking = ranking
        self._biases: dict[tuple[int, int], nn.Parameter | None] = {}
        self._weights: list[list[tuple[nn.Linear, torch.Tensor, torch.Tensor | None]]] = []
        with torch.no_grad():
            for layer, order in enumerate(ranking.ffn):
                self._weights.append(self._reorder(layer, torch.from_numpy(order).long().to(model.device)))
        workers = min(torch.get_num_threads(), len(batches)) if model.device.type == "cpu" else 1
        self._pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
        if cache_bytes is None:
            cache_bytes = default_cache_bytes(sum(p.numel() * p.element_size() for p in model.parameters()))
        share = cache_bytes // len(batches)
        inputs = self._pool.submit(decoder_inputs, model, batches).result()  # on one thread too, for equal numbers
        self._batches = [self._prepare(batch, x, share) for batch, x in zip(batches, inputs, strict=True)]

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
        running = [self._pool.submit(self._measure, batch, widths) for batch in self._batches]
        try:
            measured = [batch.result() for batch in running]
        except BaseException:
            # Also an interrupt: batches that still run must neither see other weights nor leave their states behind.
            for batch in running:
                batch.cancel()
            wait(running)
            for prepared in self._batches:
                prepared.prefixes.clear()
            raise
        finally:
            self._slice(self._dense_widths)
        tokens = sum(len(batch.answers.targets) for batch in self._batches)
        num_answers = sum(batch.answers.num_answers for batch in self._batches)
        kl, nll = (sum(batch[part] for batch in measured) / tokens for part in (0, 1))
        correct, agreeing = (sum(batch[part] for batch in measured) for part in (2, 3))
        return Metrics(kl, nll, correct / num_answers, tokens, num_answers, agreeing / tokens)

    @torch.inference_mode()
    def _measure(self, batch: _PreparedBatch, widths: Sequence[int]) -> tuple[float, float, int, int]:
        """One batch: summed KL, summed NLL, answers that are right, and tokens that the dense model would choose."""
        answers = batch.answers
        hidden = self._view.final_norm(self._hidden(batch, widths)[answers.rows, answers.positions])
        log_p = self._log_probabilities(hidden)
        log_dense = self._log_probabilities(answers.dense_hidden)
        # Rounding can take a KL of zero below it.
        kl = max(0.0, float((log_dense.exp() * (log_dense - log_p)).sum()))
        nll = -float(log_p.gather(1, answers.targets[:, None]).sum())
        wrong = torch.zeros(answers.num_answers, dtype=torch.bool, device=hidden.device)
        chosen = log_p.argmax(dim=1)
        wrong[answers.answer[chosen != answers.targets]] = True
        return kl, nll, int((~wrong).sum()), int((chosen == log_dense.argmax(dim=1)).sum())

    @property
    def dense_widths(self) -> tuple[int, ...]:
        """FFN widths [L] of the unpruned model."""
        return self._dense_widths

    @property
    def cached_bytes(self) -> int:
        """Hidden states held now."""
        return sum(batch.prefixes.num_bytes for batch in self._batches)

    def _hidden(self, batch: _PreparedBatch, widths: Sequence[int]) -> torch.Tensor:
        """Output of the last layer [B, T, D], from the deepest layer on whose input is known."""
        first, known = batch.prefixes.longest(widths)
        hidden = batch.calls.hidden if known is None else known
        for layer in range(first, len(widths)):
            if layer > first:
                batch.prefixes.put(widths[:layer], hidden)
            hidden = batch.calls.through(layer, self._view.layers[layer], hidden)
        return hidden

    def _log_probabilities(self, hidden: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [N, V] in float32."""
        return torch.log_softmax(self._view.logits(hidden), dim=-1)

    def _reorder(self, layer: int, order: torch.Tensor) -> list[tuple[nn.Linear, torch.Tensor, torch.Tensor | None]]:
        """Permute the channels of one FFN in place; returns its projections with their full weights."""
        full: list[tuple[nn.Linear, torch.Tensor, torch.Tensor | None]] = []
        for linear in self._view.in_projections(layer):
            for rows in self._view.channel_rows(
                layer, [linear.weight, *([] if linear.bias is None else [linear.bias])]
            ):
                rows.copy_(rows[order])
            full.append((linear, linear.weight.data, None if linear.bias is None else linear.bias.data))
        out = self._view.out_projection(layer)
        out.weight.copy_(out.weight[:, order])
        full.append((out, out.weight.data, None if out.bias is None else out.bias.data))
        return full

    def _slice(self, widths: Sequence[int]) -> None:
        for layer, (width, projections) in enumerate(zip(widths, self._weights, strict=True)):
            *into, (out, out_weight, _) = projections
            for linear, weight, bias in into:
                linear.weight = nn.Parameter(self._best_rows(layer, weight, width), requires_grad=False)
                if bias is not None:
                    linear.bias = nn.Parameter(self._best_rows(layer, bias, width), requires_grad=False)
            out.weight = nn.Parameter(out_weight[:, :width], requires_grad=False)
            if self._ranking.compensates:
                out.register_parameter("bias", self._out_bias(layer, width))

    def _best_rows(self, layer: int, tensor: torch.Tensor, width: int) -> torch.Tensor:
        """Rows of the `width` best channels: a slice, or, of a fused projection, the slices of its halves together."""
        dense = self._dense_widths[layer]
        if len(tensor) == dense:
            return tensor[:width]
        return torch.cat([part[:width] for part in torch.split(tensor, dense)])

    def _out_bias(self, layer: int, width: int) -> nn.Parameter | None:
        """The bias [D] of a down projection whose ranking compensates for removed channels; each worked out once."""
        if (layer, width) not in self._biases:
            _, weight, bias = self._weights[layer][-1]
            if width < self._dense_widths[layer]:
                order = torch.from_numpy(self._ranking.ffn[layer]).long().to(weight.device)
                bias = compensated_bias(weight[:, order.argsort()], bias, self._ranking, layer, width)
            self._biases[layer, width] = None if bias is None else nn.Parameter(bias, requires_grad=False)
        return self._biases[layer, width]

    @torch.inference_mode()
    def _prepare(self, batch: Batch, inputs: dict[str, Any], cache_bytes: int) -> _PreparedBatch:
        calls = record_layer_calls(self._view, inputs)
        if self._knows_causal:
            calls = without_causal_mask(calls, batch.inputs["attention_mask"])
        rows, positions, answer = [], [], []
        for index, span in enumerate(batch.spans):
            for position in range(span.start, span.stop):
                rows.append(span.row)
                positions.append(position)
                answer.append(index)
        device = calls.hidden.device
        row, token = torch.tensor(rows, device=device), torch.tensor(positions, device=device)
        targets = batch.inputs["input_ids"].to(device)[row, token]
        # Not what recording saw: the dense configuration must come out as 0 exactly, so it goes the same way.
        dense = self._pool.submit(self._dense_hidden, calls).result()[row, token - 1]
        answers = _AnswerTokens(
            row, token - 1, targets, torch.tensor(answer, device=device), len(batch.spans), self._view.final_norm(dense)
        )
        state_bytes = calls.hidden.numel() * calls.hidden.element_size()
        prefixes = PrefixCache(cache_bytes, state_bytes=state_bytes, num_layers=len(self._view.layers))
        return _PreparedBatch(calls, answers, prefixes)

    @torch.inference_mode()
    def _dense_hidden(self, calls: LayerCalls) -> torch.Tensor:
        hidden = calls.hidden
        for index, layer in enumerate(self._view.layers):
            hidden = calls.through(index, layer, hidden)
        return hidden


@torch.inference_mode()
def evaluate_model(
    model: "PreTrainedModel", batches: Sequence[Batch], dense: "PreTrainedModel | None" = None
) -> Metrics:
    """Metrics of a model as it stands, dense or really cut, by whole forward passes of the unmodified network.

    KL and agreement are with `dense`; without one the model is compared with itself: 0, and None.
    """
    kl = nll = 0.0
    tokens = answers = correct = agreeing = 0
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
        agreeing += int((log_p.argmax(dim=1) == log_dense.argmax(dim=1)).sum())
        tokens += start
        answers += len(batch.spans)
    agreement = None if dense is None else agreeing / tokens
    return Metrics(kl / tokens, nll / tokens, correct / answers, tokens, answers, agreement)


def _answer_log_probabilities(model: "PreTrainedModel", batch: Batch) -> torch.Tensor:
    """Log-probabilities [N, V] of the positions that predict the batch's answer tokens, in order."""
    logits = model(**{k: v.to(model.device) for k, v in batch.inputs.items()}, use_cache=False).logits
    picked = [logits[span.row, span.start - 1 : span.stop - 1] for span in batch.spans]
    return torch.log_softmax(torch.cat(picked).float(), dim=-1)
