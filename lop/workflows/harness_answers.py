"""What a model says to an evaluation harness: greedy answers, and log-likelihoods of continuations."""

import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pruning.checkpoints.processor import tokenizer_of
from pruning.data.chat_rendering import turn_ends
from pruning.data.conversations import Conversation, Turn
from pruning.measuring.answers import Question, answer_batch, batches_of, check_questions, question_of
from pruning.measuring.likelihood import log_likelihoods
from pruning.measuring.raw_prompts import continue_texts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pruning.checkpoints.processor import Processor

MAX_NEW_TOKENS = 256
"""Of an answer, where neither the task nor a recorded answer says how long it may be (lm-eval's own default)."""


def answering(
    model: "PreTrainedModel", processor: "Processor", *, batch_size: int = 16
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The function that answers a harness (integrations/evaluation/lop_evaluation/connection.py has the documents)."""

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        if asked["kind"] == "loglikelihood":
            pairs = [(context, continuation) for context, continuation in asked["pairs"]]
            return {"scores": log_likelihoods(model, processor, pairs, batch_size=batch_size)}
        with TemporaryDirectory(prefix="lop-pictures-") as folder:
            return {"answers": _answers(model, processor, asked, batch_size, Path(folder))}

    return answer


def _answers(
    model: "PreTrainedModel", processor: "Processor", asked: dict[str, Any], batch_size: int, pictures: Path
) -> list[str]:
    documents: Sequence[dict[str, Any]] = asked["questions"]
    said: dict[int, str] = {}
    # Prompts of the task's own go to the model as they are: those need no chat template, and keep their spaces.
    if raw := [index for index, document in enumerate(documents) if "text" in document]:
        texts, longest = [documents[index]["text"] for index in raw], asked["max_new_tokens"] or MAX_NEW_TOKENS
        found = continue_texts(model, processor, texts, max_new_tokens=longest, batch_size=batch_size)
        said |= dict(zip(raw, found, strict=True))
    if chats := [index for index in range(len(documents)) if index not in said]:
        questions = [_question(index, documents[index], processor, pictures) for index in chats]
        check_questions(questions, processor)
        ends = turn_ends(processor)
        for batch in batches_of(questions, batch_size):
            longest = asked["max_new_tokens"] or _longest([documents[x.index].get("answer") for x in batch], processor)
            answers = answer_batch(model, processor, batch, max_new_tokens=longest, ends=set(ends))
            said |= {question.index: answer.text for question, answer in zip(batch, answers, strict=True)}
    return [_until(said[index], asked["until"]) for index in range(len(documents))]


def _question(index: int, document: dict[str, Any], processor: "Processor", pictures: Path) -> Question:
    image = None if document.get("image") is None else Path(document["image"])
    if "png" in document:
        image = pictures / f"{index}.png"
        image.write_bytes(base64.b64decode(document["png"]))
    turns = tuple(Turn(question, answer) for question, answer in document["turns"])
    return question_of(index, Conversation(str(index), image, turns), processor)


def _longest(answers: Sequence[str | None], processor: "Processor") -> int:
    """One token more than the longest recorded answer, as `lop evaluate` has it: one that runs on is wrong."""
    if None in answers:
        return MAX_NEW_TOKENS
    tokenizer = tokenizer_of(processor)
    return 1 + max(len(tokenizer(answer, add_special_tokens=False)["input_ids"]) for answer in answers)


def _until(text: str, stops: Sequence[str]) -> str:
    """What comes before the first of `stops`."""
    return min((text.partition(stop)[0] for stop in stops if stop), key=len, default=text)
