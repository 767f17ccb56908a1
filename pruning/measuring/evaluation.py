"""Scoring architectures: KL to and agreement with the dense model, negative log-likelihood and exact match on answers.

FFN channels and KV groups are put in ranking order once; then every architecture is a prefix slice of the same weights:
no copy, no mask, and the narrower forward is really cheaper. What is skipped is not run. The vision tower and the
projector run once, for all architectures; padding is not computed; layers that an architecture shares with an earlier
one are not run again; the output head sees answer tokens only.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

import torch

from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.anatomy.decoder_view import decoder_view
from pruning.checkpoints.anatomy_reader import anatomy_of
from pruning.data.batches import Batch
from pruning.errors import InputError
from pruning.forward.answer_head import AnswerHead, Comparison, DenseAnswers
from pruning.forward.answer_rows import AnswerRow, packed_rows, padded_rows, record_batches
from pruning.forward.compute_dtype import widen, widened
from pruning.forward.decoder_inputs import taking
from pruning.forward.layerwise import LayerCalls
from pruning.forward.packing import packed_attention
from pruning.forward.prefix_cache import PrefixCache, default_cache_bytes
from pruning.forward.skipping import skipping
from pruning.forward.sliced_attention import SlicedAttention
from pruning.forward.sliced_ffn import SlicedFfn
from pruning.forward.sliced_linear import OutputSolver, WeightMasker, WeightRounder
from pruning.forward.wide_passes import is_computed_wide, wide_passes
from pruning.measuring.metrics import FoldMetrics, Metrics
from pruning.planning.ranking import Ranking
from pruning.reasons import reason_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")

LayerUnits = tuple[float, ...]
"""FFN channels and KV groups that a layer keeps; where the weights of either are not as they are, bits and density of
both, too (0: as they are)."""

logger = logging.getLogger(__name__)

_SAME_STATES = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Relative difference of hidden states in rows and in padded batches up to which they are the same but for rounding:
1e-6 was seen where they are, .03 where a prefix mask was forgotten."""

_SAME_HALF_STATES = 0.02
"""In half types."""


@dataclass(frozen=True)
class _Measured:
    """Of one row's answer tokens: summed KL and NLL, in nats; how many the dense model would choose; right answers.

    `folds` [6, F] are the sums of each fold, in the order of `FoldMetrics`; None where there are none.
    """

    kl: float
    folds: torch.Tensor | None
    nll: float
    agreeing: int
    correct: int


class ConfigurationEvaluator:
    """Scores FFN channels, KV groups and skipped sub-layers of one model on fixed conversations.

    Takes the model over: its FFN channels and KV groups are reordered in place, which leaves its function as it was,
    and its projections become slices while an architecture is evaluated. Call it from one thread at a time.

    On a CPU, rows of packed sequences run side by side, each on one thread: small matrices gain little from several
    threads, and the numbers do not depend on how many cores there are. Nor do they depend on what was evaluated before.
    A model in a half type that its device is slow with is computed in float32, one decoder layer of which is in memory
    at a time: load it in float32 where it fits (`lop.workflows.compute`).

    Args:
        folds: of each conversation that the batches were made of, the number of its fold, from 0, with no number left
            out; None: there are none. Raises InputError where they do not fit the batches.
        cache_bytes: bound of what is kept between evaluations: the dense model's probabilities, if they take no more
            than half of it, and hidden states of configurations that begin alike. 0 keeps nothing, None is
            `default_cache_bytes`.
        solver: of the weights that projections out of what is cut have; None: they keep those that they had. With one,
            the ranking adds no biases.
        rounder: of weights in fewer bits; None: there are none.
        masker: of weights of which a share is zeroed; None: there are none.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        batches: Sequence[Batch],
        ranking: Ranking,
        *,
        folds: Sequence[int] | None = None,
        cache_bytes: int | None = None,
        solver: OutputSolver | None = None,
        rounder: WeightRounder | None = None,
        masker: WeightMasker | None = None,
    ) -> None:
        self._fold_of = None if folds is None else _checked_folds(folds, batches)
        self._anatomy = anatomy_of(model)
        ranking.check(self._anatomy)
        assert solver is None or not ranking.compensates, "a bias would make up for what is solved already"
        self._view = decoder_view(model.eval())
        self._is_wide = is_computed_wide(model)
        widen([*self._view.final_norm.parameters()])
        if cache_bytes is None:
            cache_bytes = default_cache_bytes(sum(p.numel() * p.element_size() for p in model.parameters()))
        workers = torch.get_num_threads() if model.device.type == "cpu" else 1
        self._pool = ThreadPoolExecutor(workers, initializer=stay_alone)
        self._device = model.device
        with _on_one_thread(model.device):  # as all that follows, for equal numbers
            recorded = record_batches(model, self._view, batches)
        self._ffn = SlicedFfn(self._view, self._anatomy.layers, ranking, solver)
        self._attention = SlicedAttention(self._view, self._anatomy.layers, ranking, solver)
        self._rounder, self._masker = rounder, masker
        self._orders_groups = ranking.kv_groups is not None
        self._head = AnswerHead(self._view)
        self._choose_rows(model, batches, recorded)
        self._keep_answers(cache_bytes)

    def __call__(self, architectures: Sequence[Architecture]) -> list[Metrics]:
        """Metrics of each of `architectures` [n]; the model is dense again afterwards.

        Raises InputError for one that is not of this model, changes bits without a rounder, or densities without a
        masker or of what is cut, or keeps some KV groups of a layer where the ranking does not order them.
        """
        checked = [(*self._units_of(architecture), _made_anew(architecture)) for architecture in architectures]
        return [self._evaluate(*kept) for kept in checked]

    def evaluate(self, widths: Sequence[int]) -> Metrics:
        """Metrics of FFN widths [L] with whole attention; raises InputError for a width outside 0..dense."""
        dense = self.dense_widths
        if len(widths) != len(dense) or any(not 0 <= w <= d for w, d in zip(widths, dense, strict=False)):
            raise InputError(
                "a configuration has a width between 0 and dense for every layer",
                values=f"{list(widths)}, dense {list(dense)}",
            )
        return self._evaluate(widths, self._attention.dense_groups)

    def _evaluate(
        self, widths: Sequence[int], groups: Sequence[int], anew: Mapping[Site, Option] = MappingProxyType({})
    ) -> Metrics:
        """Metrics of FFN widths [L] and KV groups [L], either of which may be 0, and of sites whose weights are made
        `anew`: in fewer bits, or with zeros."""
        kept = {Sublayer.FFN: widths, Sublayer.ATTENTION: groups}
        skipped = [Site(layer, x) for x, units in kept.items() for layer, count in enumerate(units) if count == 0]
        try:
            with _on_one_thread(self._device):  # what is solved must not depend on their number
                self._ffn.slice(widths)
                self._attention.slice(groups)
                self._make_anew(anew)
            layers = tuple(zip(widths, groups, strict=True))
            with skipping(self._view, skipped):
                measured = self._of_each_row(_with_weights(layers, anew) if anew else layers, self._compare)
        except BaseException:
            for prefixes in self._prefixes:
                prefixes.clear()
            raise
        finally:
            self._ffn.slice(self._ffn.dense_widths)
            self._attention.slice(self._attention.dense_groups)
        tokens = sum(len(row.targets) for row in self._rows)
        num_answers = sum(row.num_answers for row in self._rows)
        return Metrics(
            kl=sum(row.kl for row in measured) / tokens,
            nll=sum(row.nll for row in measured) / tokens,
            accuracy=sum(row.correct for row in measured) / num_answers,
            num_tokens=tokens,
            num_answers=num_answers,
            agreement=sum(row.agreeing for row in measured) / tokens,
            folds=_fold_metrics([row.folds for row in measured if row.folds is not None]),
        )

    def _make_anew(self, anew: Mapping[Site, Option]) -> None:
        for site, option in anew.items():
            sliced = self._ffn if site.sublayer is Sublayer.FFN else self._attention
            if option.density is not None:
                assert self._masker is not None
                sliced.mask(site.layer, option.density, self._masker)
            elif option.bits is not None:
                assert self._rounder is not None
                sliced.round(site.layer, option.units, option.bits, self._rounder)

    def _units_of(self, architecture: Architecture) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """FFN widths [L] and KV groups [L]."""
        for site, option in architecture.items:
            dense = self._anatomy.layers[site.layer].units(site.sublayer) if site.layer < len(self._view.layers) else -1
            is_ordered = site.sublayer is Sublayer.FFN or self._orders_groups or option.units in (0, dense)
            is_rounded = option.bits is None or self._rounder is not None
            if option.density is not None and (self._masker is None or option != Option(dense, None, option.density)):
                raise InputError(
                    "densities are scored by an evaluator with a masker, and of sub-layers that are whole otherwise",
                    values=f"{architecture.document()} {'without a' if self._masker is None else 'with a'} masker",
                    remedy="Give it the squares of the dense model's inputs (`EvaluatorRecipe.squares`), or leave "
                    "densities out",
                )
            if not option.units <= dense or not is_rounded or not is_ordered:
                raise InputError(
                    "what is evaluated keeps FFN channels of its model, and KV groups if the ranking orders them",
                    values=f"{architecture.document()} of a model of {self._anatomy.num_layers} layers",
                    remedy="Search in a space of this model; register it anew if its ranking does not order KV groups",
                )
        return self._anatomy.ffn_widths(architecture), self._anatomy.kv_groups(architecture)

    @property
    def dense_widths(self) -> tuple[int, ...]:
        """FFN widths [L] of the unpruned model."""
        return self._ffn.dense_widths

    @property
    def row_sizes(self) -> list[tuple[int, int]]:
        """Of each row that is computed: tokens (padding, if there is any, included), and answer tokens."""
        return [(row.calls.hidden.shape[:2].numel(), len(row.targets)) for row in self._rows]

    @property
    def cached_bytes(self) -> int:
        """Probabilities and hidden states held now."""
        kept = sum(p.numel() * p.element_size() for x in self._dense for p in x.probabilities or ())
        return kept + sum(prefixes.num_bytes for prefixes in self._prefixes)

    def _choose_rows(self, model: "PreTrainedModel", batches: Sequence[Batch], recorded: Sequence[LayerCalls]) -> None:
        """Pack the sequences, or leave the batches as they are where a model's layers do not take rows."""
        self._within_rows: Callable[[], AbstractContextManager[None]] = nullcontext
        implementation = model.config.get_text_config(decoder=True)._attn_implementation
        if implementation == "sdpa":
            self._within_rows = lambda: packed_attention(self._view)
            try:
                self._use(packed_rows(self._view, batches, recorded))
                reason = self._difference_to_batches()
            except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
                reason = reason_of(error)  # layers that are called with what rows do not know of
            if reason is None:
                return
            logger.warning("padding is computed, since the layers of %s take no rows: %s", type(model).__name__, reason)
            self._within_rows = nullcontext
        self._use(padded_rows(batches, recorded))

    def _use(self, rows: list[AnswerRow]) -> None:
        self._rows = rows
        self._prefixes = [PrefixCache(0, state_bytes=1, num_layers=len(self._view.layers)) for _ in rows]
        dense = tuple(zip(self.dense_widths, self._attention.dense_groups, strict=True))
        self._dense_hidden = self._of_each_row(dense, lambda _row, hidden: hidden)

    def _difference_to_batches(self) -> str | None:
        """What speaks against rows: hidden states of the dense model that differ from those in padded batches."""
        for row, hidden in zip(self._rows, self._dense_hidden, strict=True):
            difference = float((hidden - row.dense_hidden).norm() / row.dense_hidden.norm())
            if difference > _SAME_STATES.get(hidden.dtype, _SAME_HALF_STATES):  # broken weights are NaN in both
                return f"hidden states differ by {difference:.2g}"
        return None

    def _keep_answers(self, cache_bytes: int) -> None:
        """Work out what the dense model says, and share out what may be kept over the rows."""
        needed = self._head.probability_bytes(sum(len(row.targets) for row in self._rows))
        keeps = needed <= cache_bytes // 2

        def say(hidden: torch.Tensor) -> DenseAnswers:
            return self._head.dense_answers(hidden, keep_probabilities=keeps)

        # Not what recording saw: the dense configuration must come out as 0 exactly, so it goes the same way.
        self._dense = list(self._pool.map(say, self._dense_hidden))
        share = (cache_bytes - needed if keeps else cache_bytes) // len(self._rows)
        self._prefixes = [
            PrefixCache(
                share,
                state_bytes=row.calls.hidden.numel() * row.calls.hidden.element_size(),
                num_layers=len(self._view.layers),
            )
            for row in self._rows
        ]
        del self._dense_hidden

    def _of_each_row(self, kept: Sequence[LayerUnits], finish: Callable[[int, torch.Tensor], T]) -> list[T]:
        """`finish(row, hidden)` with the hidden states [N, D] that predict the row's answer tokens, normed.

        The layers have been cut down to what is `kept` [L] of them.
        """
        modules = [None if units == (0, 0) else x for x, units in zip(self._view.layers, kept, strict=True)]
        first_layers: list[int] = []
        states: list[torch.Tensor] = []
        for row, prefixes in zip(self._rows, self._prefixes, strict=True):
            first, known = prefixes.longest(kept)
            first_layers.append(first)
            states.append(row.calls.hidden if known is None else known)

        @torch.inference_mode()
        def advance(layer: int, index: int) -> None:
            if layer > first_layers[index]:
                self._prefixes[index].put(kept[:layer], states[index])
            if layer >= first_layers[index]:
                states[index] = self._rows[index].calls.through(layer, modules[layer], states[index])

        @torch.inference_mode()
        def end(index: int) -> T:
            row = self._rows[index]
            return finish(index, self._view.final_norm(states[index].flatten(0, 1)[row.positions]))

        def whole(index: int) -> T:
            for layer in range(len(kept)):
                advance(layer, index)
            return end(index)

        with self._within_rows():
            if not self._is_wide:
                return self._side_by_side(whole)
            # All rows through one layer before the next: only one is in memory in float32.
            for layer, module in enumerate(modules):
                with widened([] if module is None else [*module.parameters(), *module.buffers()]):
                    self._side_by_side(partial(advance, layer))
            return self._side_by_side(end)

    def _side_by_side(self, task: Callable[[int], T]) -> list[T]:
        """`task` of each row's index, as many at once as the pool has threads."""
        running: list[Future[T]] = []
        try:
            running += (self._pool.submit(task, index) for index in range(len(self._rows)))
            return [row.result() for row in running]
        except BaseException:
            # Also an interrupt: rows that still run must neither see other weights nor leave their states behind.
            for row in running:
                row.cancel()
            wait(running)
            raise

    def _compare(self, index: int, hidden: torch.Tensor) -> _Measured:
        row, dense = self._rows[index], self._dense[index]
        found = self._head.compare(hidden, dense, row.targets)
        wrong = torch.zeros(row.num_answers, dtype=torch.bool, device=hidden.device)
        wrong[row.answer[found.chosen != row.targets]] = True
        return _Measured(
            kl=_least_zero(float(found.kl.sum())),
            folds=None if self._fold_of is None else _by_fold(row, self._fold_of, found, dense, wrong),
            nll=float(found.nll.sum()),
            agreeing=int((found.chosen == dense.chosen).sum()),
            correct=int((~wrong).sum()),
        )


def _made_anew(architecture: Architecture) -> dict[Site, Option]:
    """The sites whose weights are not those of the dense model, or a part of them."""
    return {site: option for site, option in architecture.items if option != Option(option.units)}


def _with_weights(layers: Sequence[LayerUnits], anew: Mapping[Site, Option]) -> tuple[LayerUnits, ...]:
    """[L] with bits and density of FFN and attention where the weights of one are made `anew`."""
    as_they_are = Option(0)
    options = [
        [anew.get(Site(n, x), as_they_are) for x in (Sublayer.FFN, Sublayer.ATTENTION)] for n in range(len(layers))
    ]
    own = [tuple(value or 0 for x in of for value in (x.bits, x.density)) for of in options]
    return tuple((*units, *x) if any(x) else units for units, x in zip(layers, own, strict=True))


def _by_fold(
    row: AnswerRow, fold_of: torch.Tensor, found: Comparison, dense: DenseAnswers, wrong: torch.Tensor
) -> torch.Tensor:
    """[6, F] sums over the tokens [N] and the answers of a row that are of each fold; `wrong` are answers."""
    of_token = fold_of[row.conversation.cpu()]
    of_answer = torch.zeros(row.num_answers, dtype=torch.long).scatter_(0, row.answer.cpu(), of_token)
    size = int(fold_of.max()) + 1

    def total(fold: torch.Tensor, what: torch.Tensor) -> torch.Tensor:
        # On the CPU: a GPU adds in any order, and what is chosen must not depend on that.
        return torch.bincount(fold, what.cpu().double(), minlength=size)

    tokens, answers = torch.ones_like(of_token), torch.ones_like(of_answer)
    agreeing = found.chosen == dense.chosen
    sums = [(of_token, found.kl), (of_answer, ~wrong), (of_token, agreeing), (of_token, tokens), (of_answer, answers)]
    sums.append((of_token, found.kl.clamp(min=0).sqrt()))
    return torch.stack([total(fold, what) for fold, what in sums])


def _checked_folds(folds: Sequence[int], batches: Sequence[Batch]) -> torch.Tensor:
    """[conversations] the fold of each."""
    seen = {number for batch in batches for number in batch.conversations}
    complete = all(len(batch.conversations) == len(batch.inputs["input_ids"]) for batch in batches)
    if not complete or seen != set(range(len(folds))) or set(folds) != set(range(max(folds, default=-1) + 1)):
        raise InputError(
            "folds number every conversation of the batches, from 0 and without a gap",
            values=f"{len(folds)} numbers, {len(seen)} conversations in the batches",
            remedy="Make the batches of these conversations with make_batches",
        )
    return torch.tensor(folds)


def _fold_metrics(rows: Sequence[torch.Tensor]) -> tuple[FoldMetrics, ...] | None:
    """From the sums [6, F] of each row."""
    if not rows:
        return None
    return tuple(
        FoldMetrics(
            _least_zero(kl / tokens), correct / answers, agreeing / tokens, int(tokens), int(answers), roots / tokens
        )
        for kl, correct, agreeing, tokens, answers, roots in torch.stack(list(rows)).sum(dim=0).T.tolist()
    )


def stay_alone() -> None:
    """Every operation of the thread that calls this takes that one thread."""
    # Asked first: a thread takes over what the process has at its first operation, whatever was set in it before.
    torch.get_num_threads()
    torch.set_num_threads(1)


@contextmanager
def _on_one_thread(device: torch.device) -> Iterator[None]:
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
        kl += _least_zero(float((log_dense.exp() * (log_dense - log_p)).sum()))
        agreeing += int((log_p.argmax(dim=1) == log_dense.argmax(dim=1)).sum())
        tokens += start
        answers += len(batch.spans)
    agreement = None if dense is None else agreeing / tokens
    return Metrics(kl / tokens, nll / tokens, correct / answers, tokens, answers, agreement)


def _least_zero(kl: float) -> float:
    """Rounding can take a KL of zero below it. What is not a number stays that: a broken model is not a perfect one."""
    return kl if math.isnan(kl) else max(0.0, kl)


def _answer_log_probabilities(model: "PreTrainedModel", batch: Batch) -> torch.Tensor:
    """Log-probabilities [N, V] of the positions that predict the batch's answer tokens, in order."""
    # Of all rows' logits [B, T, V], those at positions where any row has an answer.
    wanted = sorted({position for span in batch.spans for position in range(span.start - 1, span.stop - 1)})
    inputs = {k: v.to(model.device) for k, v in batch.inputs.items()}
    with wide_passes(model), taking(batch.ids):
        logits = model(**inputs, use_cache=False, logits_to_keep=torch.tensor(wanted, device=model.device)).logits
    place = {position: index for index, position in enumerate(wanted)}
    picked = [logits[span.row, place[span.start - 1] : place[span.stop - 2] + 1] for span in batch.spans]
    return torch.log_softmax(torch.cat(picked).float(), dim=-1)
