"""Scores of a model on a part, answer by answer, against the dense model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from pruning.anatomy.decoder_view import decoder_view
from pruning.data.batches import Batch, remakable_batches
from pruning.data.conversations import Conversation
from pruning.data.remade_inputs import PictureRoom
from recovery.answer_states import AnswerStates
from recovery.kinds import Kinds
from recovery.passes import Passes
from recovery.precision import logits_of
from recovery.processes import ALONE, Processes
from recovery.scores import AnswerScores
from recovery.teacher import head_alone

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pruning.checkpoints.processor import Processor

PICTURE_BYTES: Final = 2 * 2**30
"""Of preprocessed pictures that a part keeps in memory: 1,500 of LLaVA-1.5's. Others are made again at each pass."""


@dataclass(frozen=True)
class Part:
    """Conversations that a model is judged on.

    Attributes:
        name: `selection`, which decides, or `validation`, which only reports.
        batches: of the conversations; of those that this process does not judge, only where their answers are.
        kinds: of each answer [n], in the order of the batches; None where the data name none.
    """

    name: str
    batches: list[Batch]
    kinds: tuple[str, ...] | None = None

    @property
    def num_answers(self) -> int:
        """n."""
        return sum(len(batch.spans) for batch in self.batches)


def part_of(
    name: str,
    conversations: Sequence[Conversation],
    processor: "Processor",
    kinds: Kinds | None = None,
    processes: Processes = ALONE,
) -> Part:
    """Raises as `remakable_batches`."""
    ordered = sorted(conversations, key=rough_length)
    room = PictureRoom(PICTURE_BYTES)
    batches = []
    for index, (batch, again) in enumerate(remakable_batches(ordered, processor)):
        is_own = index % processes.count == processes.number
        batches.append(room.held(batch, again) if is_own else replace(batch, inputs={}))
    if kinds is None:
        return Part(name, batches)
    turn = [0] * len(ordered)
    found = []
    for batch in batches:
        for span in batch.spans:
            owner = batch.conversations[span.row]
            found.append(kinds.of_turns(ordered[owner])[turn[owner]])
            turn[owner] += 1
    return Part(name, batches, tuple(found))


def rough_length(conversation: Conversation) -> tuple[bool, int]:
    """What sorts conversations so that neighbours waste little padding."""
    texts = (len(turn.question) + len(turn.answer) for turn in conversation.turns)
    return conversation.image is not None, sum(texts)


class Judge:
    """Scores models on one part. What the dense model says of it is recorded at the start, or read where it is `kept`.

    Of several processes each takes its share of the batches; all have the scores of the whole part.
    """

    def __init__(
        self,
        dense: "PreTrainedModel",
        part: Part,
        *,
        on_batch: Callable[[int, int], None] | None = None,
        processes: Processes = ALONE,
        kept: AnswerStates | None = None,
    ) -> None:
        self.part, self._processes = part, processes
        self._head = head_alone(decoder_view(dense))
        self._batches = processes.share(part.batches)
        firsts = np.cumsum([0, *(len(batch.spans) for batch in part.batches)])[:-1]
        self._firsts = processes.share(firsts.tolist())
        passes = Passes(dense, self._batches, recorded_bytes=0)
        known = None if kept is None else kept.read(len(passes), dense.device)
        self._dense = _recorded(passes, on_batch) if known is None else known
        if known is None and kept is not None:
            kept.write(self._dense)
        self.dense_scores = self._whole(
            [self._scores(i, self._log_dense(i), passes.places[i].targets) for i in range(len(passes))]
        )

    def passes(self, model: "PreTrainedModel", *, trains_before_decoder: bool) -> Passes:
        """Of `model` over the part, to be given to `scores` as often as its weights change."""
        return Passes(model, self._batches, trains_before_decoder=trains_before_decoder)

    @torch.no_grad()
    def scores(self, passes: Passes) -> AnswerScores:
        """Of the model as it stands now."""
        found = []
        for index, places in enumerate(passes.places):
            last, _ = passes(index)
            log_p = torch.log_softmax(passes.logits(last[places.answers]), dim=-1)
            found.append(self._scores(index, log_p, places.targets))
        return self._whole(found)

    def _whole(self, found: Sequence[AnswerScores]) -> AnswerScores:
        """Of all answers in order, from those of this process's batches and of the others'."""
        table = np.zeros((len(fields(AnswerScores)), self.part.num_answers))
        for first, scores in zip(self._firsts, found, strict=True):
            table[:, first : first + len(scores.tokens)] = scores.columns()
        return AnswerScores(*self._processes.summed(table))

    @torch.no_grad()
    def _log_dense(self, index: int) -> torch.Tensor:
        return torch.log_softmax(logits_of(self._head, self._dense[index]), dim=-1)

    @torch.no_grad()
    def _scores(self, index: int, log_p: torch.Tensor, targets: torch.Tensor) -> AnswerScores:
        """Of one batch, from log-probabilities [N, V]."""
        log_dense = self._log_dense(index)
        kl = (log_dense.exp() * (log_dense - log_p)).sum(dim=-1)
        chosen = log_p.argmax(dim=-1)
        nll = -log_p.gather(1, targets[:, None])[:, 0]
        columns = (kl, nll, torch.ones_like(nll), chosen == log_dense.argmax(dim=-1), chosen == targets)
        stops = np.cumsum([span.stop - span.start for span in self._batches[index].spans])[:-1]
        *sums, exact = ([x.sum() for x in np.split(c.double().cpu().numpy(), stops)] for c in columns)
        lengths = np.array(sums[2])
        kl_sums, nll_sums, _, agreeing = (np.array(x) for x in sums)
        return AnswerScores(kl_sums, nll_sums, lengths, agreeing, (np.array(exact) == lengths).astype(np.float64))


@torch.no_grad()
def _recorded(passes: Passes, on_batch: Callable[[int, int], None] | None) -> list[torch.Tensor]:
    """The last hidden states of each batch's answers, [N, D]."""
    found = []
    for index, places in enumerate(passes.places):
        found.append(passes(index)[0][places.answers].clone())
        if on_batch is not None:
            on_batch(index + 1, len(passes))
    return found
