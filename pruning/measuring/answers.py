"""A model's own answers: which prompts are asked together, and what is kept of what the model says."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pruning.checkpoints.processor import adds_special_tokens, process_conversations, tokenizer_of
from pruning.data.chat_rendering import RenderedText, prompt_of
from pruning.data.conversations import Conversation, without_placeholders
from pruning.data.input_checks import check_embedded, check_pictures, check_texts
from pruning.data.token_counts import max_positions
from pruning.errors import DatasetError
from pruning.measuring.drawing import Drawing

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from pruning.checkpoints.processor import Processor

_REASONING = "<think>", "</think>"
"""How reasoning begins and ends: chat templates drop it from the history, so it is no part of an answer."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a model is asked next in one conversation.

    Attributes:
        index: the prompt's place in its file.
        conversation: ends with the question; what was answered before it stands there as the model answered it.
        text: as the chat template renders it, up to where the answer begins.
        num_tokens: of `text`, a picture counted as its placeholder.
    """

    index: int
    conversation: Conversation
    text: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What is kept of an answer; `is_cut`: the model would have gone on."""

    text: str
    is_cut: bool


def question_of(index: int, conversation: Conversation, processor: "Processor") -> Question:
    """The last turn of `conversation` as a question.

    Raises:
        DatasetError: the chat template does not fit, or the conversation has a picture and the model takes none.
        CheckpointError: the model has no chat template.
    """
    text = prompt_of(conversation, len(conversation.turns) - 1, processor)
    special = adds_special_tokens(processor, text)
    tokens = tokenizer_of(processor)(text, add_special_tokens=special)["input_ids"]
    return Question(index, conversation, text, len(tokens))


def check_questions(questions: Sequence[Question], processor: "Processor") -> None:
    """What can be known before anything is asked: texts have tokens, tokens have embeddings, pictures can be decoded.

    Raises DatasetError or CheckpointError, and names the conversation.
    """
    texts = [RenderedText(question.conversation, question.text, ()) for question in questions]
    check_texts(texts, processor)
    check_pictures(texts, processor)


def batches_of(questions: Sequence[Question], batch_size: int) -> Iterator[list[Question]]:
    """The questions that are asked together: of like length, so that little is padding; those with pictures apart.

    Which they are depends on nothing but the questions: rounding depends on who shares a batch, and a run that goes on
    after another was killed is to find the same answers.
    """
    for has_image in (False, True):
        chosen = [question for question in questions if (question.conversation.image is not None) == has_image]
        chosen.sort(key=lambda question: (question.num_tokens, question.index))
        yield from (chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size))


def batch_key(settings: str, batch: Sequence[Question], drawing: Drawing | None = None) -> str:
    """sha256 over what decides a batch's answers: `settings` for the model, texts, images' bytes, how they are drawn.

    Raises DatasetError if an image cannot be read.
    """
    digest = hashlib.sha256(settings.encode())
    for question in batch:
        digest.update(json.dumps(question.text).encode())
        if drawing is not None:
            digest.update(f"{drawing} {_name(question)}".encode())
        image = question.conversation.image
        try:
            content = b"" if image is None else hashlib.sha256(image.read_bytes()).digest()
        except OSError as error:
            raise DatasetError("every image must be readable", values=f"{image}: {error.strerror}") from error
        digest.update(content + b"\0")
    return digest.hexdigest()


def _name(question: Question) -> str:
    """Of the answer that is to come, as nothing else in its file is called."""
    return json.dumps([question.conversation.id, len(question.conversation.turns)])


def answer_batch(
    model: "PreTrainedModel",
    processor: "Processor",
    batch: Sequence[Question],
    *,
    max_new_tokens: int,
    ends: set[int],
    stops: Sequence[str] = (),
    drawing: Drawing | None = None,
) -> list[Answer]:
    """The model's answers to `batch`, in order; `ends` end one beside the model's own tokens that do.

    Greedy ones or, with `drawing`, random ones, each by its conversation's id and its place there. One that has said
    one of `stops` may end there: what follows it may be anything.

    An answer of `max_new_tokens` that does not end is kept as far as it goes. It may be empty.

    Raises:
        DatasetError: an image cannot be read, the processor does not take a prompt, or it is too long.
        CheckpointError: a token has no embedding, special tokens are none, or the model does not take its inputs.
        MissingExtraError: the processor asks for a package.
    """
    import torch

    from pruning.forward.decoder_inputs import taking
    from pruning.measuring.drawing import drawn_tokens
    from pruning.measuring.generation import generate_tokens, greedy_config

    ends = {*ends, *(greedy_config(model, max_new_tokens).eos_token_id or [])}
    ids = [question.conversation.id for question in batch]
    images = [question.conversation.open_image() for question in batch]
    texts = [question.text for question in batch]
    inputs = process_conversations(processor, texts, images, ids, padding_side="left")
    for row, question in zip(inputs["input_ids"], batch, strict=True):
        check_embedded(row.unique().tolist(), question.conversation, processor)
    check_lengths(model.config, ids, inputs["attention_mask"].sum(dim=1).tolist(), max_new_tokens)

    def has_stopped(row: int, tokens: list[int]) -> bool:
        said = tokenizer_of(processor).decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if any(mark in said or mark in texts[row] for mark in _REASONING):
            return False  # it is no part of the answer, and may yet go on
        said = said.rstrip("\ufffd")  # a character that is cut in the middle may yet become another
        return any(stop in without_placeholders(said).strip() for stop in stops)

    with torch.inference_mode(), taking(ids, files="generation_config.json"):
        inputs = {name: value.to(model.device) for name, value in inputs.items()}
        is_enough = has_stopped if stops else None
        draw = None
        if drawing is not None:
            draw = drawn_tokens(drawing.temperature, [drawing.generator(_name(question)) for question in batch])
        tokens = generate_tokens(
            model, inputs, max_new_tokens=max_new_tokens, ends=ends, is_enough=is_enough, draw=draw
        )
    return [_answer(row.tolist(), question.text, processor, ends) for row, question in zip(tokens, batch, strict=True)]


def check_lengths(config: "PreTrainedConfig", ids: Sequence[str], lengths: Sequence[int], max_new_tokens: int) -> None:
    """Raises DatasetError unless prompts of `lengths` tokens and their answers fit the model's positions."""
    positions = max_positions(config)
    for name, length in zip(ids, lengths, strict=True):
        if positions is not None and length + max_new_tokens > positions:
            raise DatasetError(
                "a prompt and its answer must fit the model's positions",
                values=f"id {name}: {length} tokens and {max_new_tokens} new ones, of {positions}",
                remedy="Shorten the prompt, or allow fewer new tokens: --max-new-tokens, or what the task sets",
            )


def _answer(tokens: list[int], prompt: str, processor: "Processor", ends: set[int]) -> Answer:
    """What the model said; it ended it if the last of `tokens` is an end."""
    is_cut = not tokens or tokens[-1] not in ends
    said = tokens if is_cut else tokens[:-1]
    # As the tokenizer has it, spaces before full stops included: the answer must make the same tokens again.
    text = tokenizer_of(processor).decode(said, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    if is_cut:
        text = text.rstrip("\ufffd")  # a character of several tokens, cut in the middle
    begins, stops = _REASONING
    if stops in text:
        text = text.rpartition(stops)[2]
    elif begins in text or prompt.rstrip().endswith(begins):
        text = ""  # it never came to an answer
    return Answer(without_placeholders(text).strip(), is_cut)
