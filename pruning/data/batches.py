"""Conversations as tensors: teacher-forced sequences, with the positions of their answers.

A conversation is one sequence; with a chat template that renders a turn differently once it is history, one a turn
(`pruning.data.chat_rendering`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from pruning.checkpoints.processor import adds_special_tokens, process_conversations, tokenizer_of
from pruning.data.chat_rendering import RenderedText, rendered_texts
from pruning.data.conversations import Conversation
from pruning.data.input_checks import check_embedded, check_pictures, check_texts
from pruning.errors import DatasetError

if TYPE_CHECKING:
    import torch

    from pruning.checkpoints.processor import Processor


DEFAULT_BATCH_SIZE = 8
"""Rows. Evaluators run batches side by side, one a core: smaller ones keep more cores busy."""


@dataclass(frozen=True, slots=True)
class AnswerSpan:
    """One answer's tokens in a batch: row b, positions start..stop (end-of-turn token included)."""

    row: int
    start: int
    stop: int


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences.

    Attributes:
        inputs: what the model's forward takes (input_ids [B, T], attention_mask [B, T], image tensors).
        spans: all answers of the batch, in order.
        ids: of each row's conversation, for messages.
        conversations: of each row, the index of its conversation among those that `make_batches` was given.
    """

    inputs: "Mapping[str, torch.Tensor]"
    spans: tuple[AnswerSpan, ...]
    ids: tuple[str, ...] = ()
    conversations: tuple[int, ...] = ()


def make_batches(
    conversations: Sequence[Conversation], processor: "Processor", *, batch_size: int = DEFAULT_BATCH_SIZE
) -> list[Batch]:
    """Tokenise conversations, `batch_size` rows at a time, in order.

    Raises:
        DatasetError: the chat template does not fit, an image cannot be read, a text has no tokens, or the processor
            does not take a conversation.
        CheckpointError: a token has no embedding.
        MissingExtraError: the processor asks for a package.
    """
    return [batch for batch, _ in remakable_batches(conversations, processor, batch_size=batch_size)]


def remakable_batches(
    conversations: Sequence[Conversation], processor: "Processor", *, batch_size: int = DEFAULT_BATCH_SIZE
) -> "Iterator[tuple[Batch, Callable[[], Batch]]]":
    """Those of `make_batches`, one at a time, each with what makes its inputs again. Raises as that."""
    texts = _texts_of(conversations, processor)
    number = {id(conversation): index for index, conversation in enumerate(conversations)}
    for start in range(0, len(texts), batch_size):
        rows = texts[start : start + batch_size]
        batch = _make_batch(rows, processor)
        owners = tuple(number[id(text.conversation)] for text in rows)
        yield replace(batch, conversations=owners), partial(_make_batch, rows, processor)


class BatchStream:
    """Batches that are made while they are taken, so that one is in memory at a time. Iterating again makes them again.

    Args:
        batch_size: rows of a batch, at most.
        max_tokens: of a batch, padding included: one that has more is halved until it fits, or is a single row.

    Raises DatasetError, CheckpointError or MissingExtraError as `make_batches`, before any batch is made: texts are
    tokenised and pictures decoded once for that.
    """

    def __init__(
        self,
        conversations: Sequence[Conversation],
        processor: "Processor",
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        max_tokens: int,
    ) -> None:
        self._texts, self._processor = _texts_of(conversations, processor), processor
        self._batch_size, self._max_tokens = batch_size, max_tokens
        check_pictures(self._texts, processor)

    @property
    def num_rows(self) -> int:
        """Rows of all batches together."""
        return len(self._texts)

    def __iter__(self) -> Iterator[Batch]:
        """In order; raises DatasetError if an image can no longer be read, or a conversation is not taken after all."""
        for _, batch in self._all():
            yield batch

    def shares(self, number: int, count: int) -> "Iterator[tuple[Batch, Callable[[], Batch]] | None]":
        """Of every batch the part of one of `count` processes: its rows number, number + count, ... padded among each
        other alone, and what makes it again; None where it has none. Raises as iterating does."""
        for texts, batch in self._all():
            own = texts[number::count]
            again = partial(_make_batch, own, self._processor)
            yield None if not own else (batch if len(own) == len(texts) else again(), again)

    def _all(self) -> Iterator[tuple[Sequence[RenderedText], Batch]]:
        for start in range(0, len(self._texts), self._batch_size):
            yield from self._fitting(self._texts[start : start + self._batch_size])

    def _fitting(self, texts: Sequence[RenderedText]) -> Iterator[tuple[Sequence[RenderedText], Batch]]:
        batch = _make_batch(texts, self._processor)
        if len(texts) == 1 or batch.inputs["input_ids"].numel() <= self._max_tokens:
            yield texts, batch
            return
        del batch
        middle = (len(texts) + 1) // 2
        yield from self._fitting(texts[:middle])
        yield from self._fitting(texts[middle:])


def num_rows(batches: Sequence[Batch]) -> int:
    """Rows of all of them together."""
    return sum(len(batch.inputs["attention_mask"]) for batch in batches)


def _texts_of(conversations: Sequence[Conversation], processor: "Processor") -> list[RenderedText]:
    texts = [text for conversation in conversations for text in rendered_texts(conversation, processor)]
    check_texts(texts, processor)
    return texts


def _make_batch(texts: Sequence[RenderedText], processor: "Processor") -> Batch:
    tokenizer = tokenizer_of(processor)
    images = [text.conversation.open_image() for text in texts]
    ids = tuple(text.conversation.id for text in texts)
    inputs = process_conversations(processor, [text.text for text in texts], images, ids, padding_side="right")
    special = adds_special_tokens(processor, texts[0].text)
    rows: list[AnswerSpan] = []
    for row, text in enumerate(texts):
        check_embedded(inputs["input_ids"][row].unique().tolist(), text.conversation, processor)
        encoded = tokenizer(text.text, add_special_tokens=special, return_offsets_mapping=True)
        length = int(inputs["attention_mask"][row].sum())
        # The processor puts many image tokens for one placeholder, all before the first answer, so positions
        # are counted from the end.
        shift = length - len(encoded["input_ids"])
        first = min(start for start, _ in text.answers)
        for position, (token, (begin, _)) in enumerate(
            zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        ):
            if begin >= first and int(inputs["input_ids"][row, position + shift]) != token:
                raise DatasetError(
                    "the processor must tokenise answers as its tokenizer does",
                    values=f"conversation {text.conversation.id}, token {position}",
                )
        for start, stop in text.answers:
            inside = [
                i
                for i, (begin, end) in enumerate(encoded["offset_mapping"])
                if begin >= start and end <= stop and end > begin
            ]
            if not inside:
                raise DatasetError("an answer must have tokens", values=f"conversation {text.conversation.id}")
            if inside[0] + shift == 0:
                raise DatasetError(
                    "a token must stand before an answer, for the answer to follow from",
                    values=f"conversation {text.conversation.id}: its text begins with the answer",
                    remedy="The model's chat template must write questions, too",
                )
            rows.append(AnswerSpan(row, inside[0] + shift, inside[-1] + 1 + shift))
    return Batch(inputs, tuple(rows), ids)
