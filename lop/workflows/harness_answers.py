"""What a model says to an evaluation harness: greedy answers, and log-likelihoods of continuations."""

import base64
import json
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pruning.checkpoints.processor import tokenizer_of
from pruning.data.chat_rendering import turn_ends
from pruning.data.conversations import Conversation, Turn
from pruning.measuring.answers import (
    Question,
    answer_batch,
    batches_of,
    check_lengths,
    check_questions,
    question_of,
)
from pruning.measuring.likelihood import log_likelihoods
from pruning.measuring.raw_prompts import continue_texts

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from pruning.checkpoints.processor import Processor

MAX_NEW_TOKENS = 256
"""Of an answer, where neither the task nor a recorded answer says how long it may be (lm-eval's own default)."""


def answering(
    model: "PreTrainedModel",
    processor: "Processor",
    *,
    batch_size: int = 16,
    on_answers: Callable[[int, int], None] = lambda _done, _asked: None,
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The function that answers a harness (integrations/evaluation/lop_evaluation/connection.py has the documents).

    `on_answers(done, asked)` is told of progress; a harness may ask more later. The function raises DatasetError for a
    question that does not fit the model's positions with its answer, before it answers any that came with it.
    """
    counts = {"done": 0, "asked": 0}

    def told(count: int) -> None:
        counts["done"] += count
        on_answers(counts["done"], counts["asked"])

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        counts["asked"] += len(asked["pairs"] if asked["kind"] == "loglikelihood" else asked["questions"])
        told(0)
        if asked["kind"] == "loglikelihood":
            pairs = [(context, continuation) for context, continuation in asked["pairs"]]
            return {"scores": log_likelihoods(model, processor, pairs, batch_size=batch_size, on_pairs=told)}
        with TemporaryDirectory(prefix="lop-pictures-") as folder:
            return {"answers": _answers(model, processor, asked, batch_size, Path(folder), told)}

    return answer


def check_files(
    files: Iterable[str], config: "PreTrainedConfig", processor: "Processor", *, limit: int | None = None
) -> None:
    """The first `limit` questions of each of `files`, as `task_files` wrote them, before a harness is started.

    Raises DatasetError for one that, with its recorded answer, is longer than the model of `config` was made for; a
    picture counts as one token here, and as what it is when it is asked.
    """
    for file in files:
        with Path(file).open(encoding="utf-8") as lines:
            for index, line in enumerate(islice(lines, limit)):
                document = json.loads(line)
                image = Path(document["lop_image"]) if document["lop_image"] else None
                turns = tuple(Turn(question, answer) for question, answer in json.loads(document["lop_turns"]))
                name = f"{document['id']} of {Path(file).stem}"
                question = question_of(index, Conversation(name, image, turns), processor)
                check_lengths(config, [name], [question.num_tokens], _longest([document["answer"]], processor))


def _answers(
    model: "PreTrainedModel",
    processor: "Processor",
    asked: dict[str, Any],
    batch_size: int,
    pictures: Path,
    told: Callable[[int], None],
) -> list[str]:
    documents: Sequence[dict[str, Any]] = asked["questions"]
    stops = [stop for stop in asked["until"] if stop]
    said: dict[int, str] = {}
    chats = [index for index, document in enumerate(documents) if "text" not in document]
    questions = [_question(index, documents[index], processor, pictures) for index in chats]
    check_questions(questions, processor)
    batches = [
        (batch, asked["max_new_tokens"] or _longest([documents[x.index].get("answer") for x in batch], processor))
        for batch in batches_of(questions, batch_size)
    ]
    for batch, longest in batches:  # a picture has more tokens, which its batch counts
        check_lengths(model.config, [x.conversation.id for x in batch], [x.num_tokens for x in batch], longest)
    # Prompts of the task's own go to the model as they are: those need no chat template, and keep their spaces.
    if raw := [index for index, document in enumerate(documents) if "text" in document]:
        found = continue_texts(
            model,
            processor,
            [documents[index]["text"] for index in raw],
            max_new_tokens=asked["max_new_tokens"] or MAX_NEW_TOKENS,
            batch_size=batch_size,
            names=[_name(index, documents[index]) for index in raw],
            stops=stops,
            on_texts=told,
        )
        said |= dict(zip(raw, found, strict=True))
    ends = set(turn_ends(processor)) if batches else set()
    for batch, longest in batches:
        answers = answer_batch(model, processor, batch, max_new_tokens=longest, ends=ends, stops=stops)
        said |= {question.index: answer.text for question, answer in zip(batch, answers, strict=True)}
        told(len(batch))
    return [_until(said[index], stops) for index in range(len(documents))]


def _name(index: int, document: dict[str, Any]) -> str:
    """What messages call a question: as its task has it, else by its place and how it begins."""
    begins = document["text"] if "text" in document else document["turns"][-1][0]
    return f"{document.get('name') or index} ({begins[:60]!r})"


def _question(index: int, document: dict[str, Any], processor: "Processor", pictures: Path) -> Question:
    image = None if document.get("image") is None else Path(document["image"])
    if "png" in document:
        image = pictures / f"{index}.png"
        image.write_bytes(base64.b64decode(document["png"]))
    turns = tuple(Turn(question, answer) for question, answer in document["turns"])
    return question_of(index, Conversation(_name(index, document), image, turns), processor)


def _longest(answers: Sequence[str | None], processor: "Processor") -> int:
    """One token more than the longest recorded answer, as `lop evaluate` has it: one that runs on is wrong."""
    if None in answers:
        return MAX_NEW_TOKENS
    tokenizer = tokenizer_of(processor)
    return 1 + max(len(tokenizer(answer, add_special_tokens=False)["input_ids"]) for answer in answers)


def _until(text: str, stops: Sequence[str]) -> str:
    """What comes before the first of `stops`."""
    return min((text.partition(stop)[0] for stop in stops), key=len, default=text)
