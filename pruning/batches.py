"""Conversations as tensors: one teacher-forced sequence each, with the positions of its answers.

Works with any processor whose chat template is prefix-stable (the text of a conversation's beginning is a prefix of
the text of the whole), which the templates of the supported families are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pruning.conversations import Conversation
from pruning.errors import DatasetError

if TYPE_CHECKING:
    import torch
    from transformers import ProcessorMixin


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
    conversations: Sequence[Conversation], processor: "ProcessorMixin", *, batch_size: int = DEFAULT_BATCH_SIZE
) -> list[Batch]:
    """Tokenise conversations, `batch_size` rows at a time, in order.

    Raises:
        DatasetError: the chat template does not fit, or an image cannot be read.
    """
    return [
        _make_batch(conversations[start : start + batch_size], processor)
        for start in range(0, len(conversations), batch_size)
    ]


def prompts_of(conversation: Conversation, processor: "ProcessorMixin") -> list[str]:
    """For each turn, the text up to where its answer begins, the true history before it."""
    messages = conversation.messages()
    return [
        _render(processor, messages[: 2 * turn + 1], conversation, add_generation_prompt=True)
        for turn in range(len(conversation.turns))
    ]


def process(processor: "ProcessorMixin", texts: list[str], images: list[Any], **kwargs: Any) -> "dict[str, Any]":
    """Call a processor on rendered texts; images may be empty. The template has written any leading BOS token."""
    return dict(
        processor(
            text=texts,
            images=images or None,
            padding=True,
            return_tensors="pt",
            add_special_tokens=False,
            **kwargs,
        )
    )


def open_images(conversations: Sequence[Conversation]) -> list[Any]:
    """The pictures of those conversations that have one."""
    return [image for c in conversations if (image := c.open_image()) is not None]


def _render(
    processor: "ProcessorMixin", messages: list[dict[str, Any]], conversation: Conversation, **kwargs: Any
) -> str:
    try:
        return str(processor.apply_chat_template(messages, tokenize=False, **kwargs))
    except Exception as error:
        raise DatasetError(
            "the processor's chat template must take user and assistant messages",
            values=f"conversation {conversation.id}: {error}",
        ) from error


def _make_batch(conversations: Sequence[Conversation], processor: "ProcessorMixin") -> Batch:
    tokenizer = processor.tokenizer
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
    inputs = process(processor, texts, open_images(conversations), padding_side="right")
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
