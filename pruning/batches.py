"""Conversations as tensors: one teacher-forced sequence each, with the positions of its answers.

Works with any processor, or tokenizer of a language model, whose chat template is prefix-stable (the text of a
conversation's beginning is a prefix of the text of the whole), which the templates of the supported families are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from pruning.conversations import Conversation
from pruning.errors import DatasetError

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

    Processor: TypeAlias = ProcessorMixin | PreTrainedTokenizerBase
    """A language model has a tokenizer alone."""


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
    """

    inputs: "dict[str, torch.Tensor]"
    spans: tuple[AnswerSpan, ...]


def make_batches(
    conversations: Sequence[Conversation], processor: "Processor", *, batch_size: int = DEFAULT_BATCH_SIZE
) -> list[Batch]:
    """Tokenise conversations, `batch_size` rows at a time, in order.

    Raises:
        DatasetError: the chat template does not fit, or an image cannot be read.
    """
    return [
        _make_batch(conversations[start : start + batch_size], processor)
        for start in range(0, len(conversations), batch_size)
    ]


class BatchStream:
    """Batches that are made while they are taken, so that one is in memory at a time. Iterating again makes them again.

    Args:
        batch_size: rows of a batch, at most.
        max_tokens: of a batch, padding included: one that has more is halved until it fits, or is a single row.
    """

    def __init__(
        self,
        conversations: Sequence[Conversation],
        processor: "Processor",
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        max_tokens: int,
    ) -> None:
        self._conversations, self._processor = conversations, processor
        self._batch_size, self._max_tokens = batch_size, max_tokens

    @property
    def num_rows(self) -> int:
        """Conversations in all batches together."""
        return len(self._conversations)

    def __iter__(self) -> Iterator[Batch]:
        """In order; raises DatasetError as `make_batches`."""
        for start in range(0, len(self._conversations), self._batch_size):
            yield from self._fitting(self._conversations[start : start + self._batch_size])

    def _fitting(self, conversations: Sequence[Conversation]) -> Iterator[Batch]:
        batch = _make_batch(conversations, self._processor)
        if len(conversations) == 1 or batch.inputs["input_ids"].numel() <= self._max_tokens:
            yield batch
            return
        del batch
        middle = (len(conversations) + 1) // 2
        yield from self._fitting(conversations[:middle])
        yield from self._fitting(conversations[middle:])


def prompts_of(conversation: Conversation, processor: "Processor") -> list[str]:
    """For each turn, the text up to where its answer begins, the true history before it."""
    messages = conversation.messages()
    return [
        _render(processor, messages[: 2 * turn + 1], conversation, add_generation_prompt=True)
        for turn in range(len(conversation.turns))
    ]


def process(
    processor: "Processor", texts: list[str], images: "Sequence[Image | None]", **kwargs: Any
) -> "dict[str, Any]":
    """Call a processor on rendered texts, each with its image or None. Templates write any leading BOS token."""
    # A list for each text, which all families take; some count the pictures of each.
    pictures = [[] if image is None else [image] for image in images]
    of_kind: dict[str, Any] = (
        {"images": pictures if any(pictures) else None} if takes_images(processor) else {"return_token_type_ids": False}
    )
    return dict(processor(text=texts, padding=True, return_tensors="pt", add_special_tokens=False, **of_kind, **kwargs))


def tokenizer_of(processor: "Processor") -> "PreTrainedTokenizerBase":
    """The tokenizer inside a processor; a tokenizer itself."""
    tokenizer: PreTrainedTokenizerBase = processor.tokenizer if takes_images(processor) else processor
    return tokenizer


def takes_images(processor: "Processor") -> bool:
    """Whether it is more than the tokenizer of a language model."""
    return hasattr(processor, "tokenizer")


def _render(processor: "Processor", messages: list[dict[str, Any]], conversation: Conversation, **kwargs: Any) -> str:
    if not takes_images(processor):
        if conversation.image is not None:
            raise DatasetError(
                "a language model takes conversations without images",
                values=f"conversation {conversation.id}: {conversation.image}",
                remedy="Leave these conversations out, or take `image` out of them",
            )
        # Templates of language models take a message's text, not a list of its parts.
        messages = [{**m, "content": "".join(part["text"] for part in m["content"])} for m in messages]
    try:
        return str(processor.apply_chat_template(messages, tokenize=False, **kwargs))
    except Exception as error:
        raise DatasetError(
            "the processor's chat template must take user and assistant messages",
            values=f"conversation {conversation.id}: {error}",
        ) from error


def _make_batch(conversations: Sequence[Conversation], processor: "Processor") -> Batch:
    tokenizer = tokenizer_of(processor)
    texts: list[str] = []
    answers: list[list[tuple[int, int]]] = []
    for conversation in conversations:
        text = _render(processor, conversation.messages(), conversation)
        spans = []
        for turn, prompt in enumerate(prompts_of(conversation, processor)):
            answered = _render(processor, conversation.messages()[: 2 * turn + 2], conversation)
            if not (answered.startswith(prompt) and text.startswith(answered.rstrip())):
                raise DatasetError(
                    "the chat template must render a conversation's beginning as a prefix of the whole",
                    values=f"conversation {conversation.id}, turn {turn}",
                )
            spans.append((len(prompt), len(answered.rstrip())))
        texts.append(text)
        answers.append(spans)
    inputs = process(processor, texts, [c.open_image() for c in conversations], padding_side="right")
    rows: list[AnswerSpan] = []
    for row, (text, spans) in enumerate(zip(texts, answers, strict=True)):
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        length = int(inputs["attention_mask"][row].sum())
        # The processor puts many image tokens for one placeholder, all before the first answer, so positions
        # are counted from the end.
        shift = length - len(encoded["input_ids"])
        first = min(start for start, _ in spans)
        for position, (token, (begin, _)) in enumerate(
            zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        ):
            if begin >= first and int(inputs["input_ids"][row, position + shift]) != token:
                raise DatasetError(
                    "the processor must tokenise answers as its tokenizer does",
                    values=f"conversation {conversations[row].id}, token {position}",
                )
        for start, stop in spans:
            inside = [
                i
                for i, (begin, end) in enumerate(encoded["offset_mapping"])
                if begin >= start and end <= stop and end > begin
            ]
            if not inside:
                raise DatasetError("an answer must have tokens", values=f"conversation {conversations[row].id}")
            rows.append(AnswerSpan(row, inside[0] + shift, inside[-1] + 1 + shift))
    return Batch(inputs, tuple(rows))
