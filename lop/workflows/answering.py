"""A calibration file of a model's own answers: for users who have prompts or pictures, and no answers."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lop.workflows.conversation_files import exists, path_from, write_once
from pruning.checkpoints.file_errors import reading
from pruning.data.chat_rendering import turn_ends
from pruning.data.conversations import IMAGE_TOKEN, Conversation
from pruning.data.prompts import Prompt
from pruning.errors import DatasetError
from pruning.measuring.answer_draft import AnswerDraft, locked_answers
from pruning.measuring.answers import (
    Answer,
    Question,
    answer_batch,
    batch_key,
    batches_of,
    check_lengths,
    check_questions,
    question_of,
)
from pruning.measuring.drawing import Drawing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pruning.checkpoints.processor import Processor

Progress = Callable[[int, int], None]
"""Told of progress as (done, total)."""

_SETTINGS = ("*.json", "*.jinja", "*.model", "*.txt")
"""The files of a checkpoint folder, beside its weights, that decide what a model answers."""


@dataclass(frozen=True)
class AnswerReport:
    """What was written.

    Attributes:
        conversations, answers: how many are in the file.
        resumed: of the answers, those that an earlier run had finished.
        cut: ids of conversations with an answer that ended at the limit of tokens, and not by itself.
        left_out: ids of prompts of which no answer, or not every one, is in the file: the model's was empty.
    """

    conversations: int
    answers: int
    resumed: int
    cut: tuple[str, ...]
    left_out: tuple[str, ...]


@dataclass
class Answerer:
    """A checkpoint that is asked; its weights are loaded when a question is not answered yet."""

    folder: Path
    processor: "Processor"
    settings: str
    ends: set[int]
    _model: "PreTrainedModel | None" = None

    @classmethod
    def read(cls, folder: Path, *, on_bytes: Progress | None = None) -> Self:
        """`on_bytes(done, total)` is told how much of the weights was read, to tell this model from others.

        Raises CheckpointError if the folder holds no model that can chat, DatasetError if its chat template does not
        fit.
        """
        from pruning.checkpoints.headers import weights_sha256
        from pruning.checkpoints.loading import load_processor

        processor = load_processor(folder)
        ends = turn_ends(processor)
        with reading(folder):
            digest = hashlib.sha256(weights_sha256(folder, on_bytes=on_bytes).encode())
            for path in sorted(path for pattern in _SETTINGS for path in folder.glob(pattern) if path.is_file()):
                digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
        return cls(folder, processor, digest.hexdigest(), ends)

    def load(self) -> "PreTrainedModel":
        """The model; loaded once."""
        if self._model is None:
            from lop.workflows.compute import load_for_compute

            self._model = load_for_compute(self.folder)
        return self._model


def answer_prompts(
    answerer: Answerer,
    prompts: Sequence[Prompt],
    out: Path,
    *,
    max_new_tokens: int,
    batch_size: int,
    drawing: Drawing | None = None,
    on_answer: Progress | None = None,
) -> AnswerReport:
    """Ask a model `prompts`, and write a conversation file of its answers to `out`.

    They are greedy ones; with `drawing` random ones, an answer by the id of its prompt (`Prompt.copies`).

    The questions of one prompt are asked in order, each with the model's own answers before it. Finished batches wait
    in a draft beside `out`: a run that was killed is gone on with by the same call, and writes the same bytes as one
    that was not. `on_answer(done, total)` is told of progress in answers.

    Raises:
        CheckpointError: the model does not load, or another process writes `out`.
        DatasetError: a prompt, its picture or the chat template cannot be used, no prompt was answered, or the file
            system refuses. What is finished stays.
        InputError: `out` exists with other content.
    """
    with locked_answers(out) as draft:
        run = _Run(answerer, prompts, out, draft, max_new_tokens, drawing, on_answer)
        for turn in range(max(len(prompt.questions) for prompt in prompts)):
            run.ask_all(turn, batch_size)
        report = run.report()
        content = _document(prompts, run.answers, out)
        write_once(out, content)
        draft.discard()
    return report


class _Run:
    """Rounds of questions: the first of every prompt, then the second of those that were answered, and so on."""

    def __init__(
        self,
        answerer: Answerer,
        prompts: Sequence[Prompt],
        out: Path,
        draft: AnswerDraft,
        max_new_tokens: int,
        drawing: Drawing | None,
        on_answer: Progress | None,
    ) -> None:
        self._answerer, self._prompts, self._out, self._draft = answerer, prompts, out, draft
        self._max_new_tokens, self._drawing, self._on_answer = max_new_tokens, drawing, on_answer
        self._settings = f"{answerer.settings} {max_new_tokens}"
        self.answers: list[list[str]] = [[] for _ in prompts]
        self._cut: set[int] = set()
        self._asked, self._resumed = 0, 0
        self._tell()

    def ask_all(self, turn: int, batch_size: int) -> None:
        """The questions that come at `turn`, of those prompts that were answered so far."""
        open_prompts = [
            (index, prompt)
            for index, (prompt, answers) in enumerate(zip(self._prompts, self.answers, strict=True))
            if len(answers) == turn < len(prompt.questions)
        ]
        questions = [
            question_of(i, prompt.asked(self.answers[i]), self._answerer.processor) for i, prompt in open_prompts
        ]
        if turn == 0:
            check_questions(questions, self._answerer.processor)
            self._check_lengths(questions)
        for batch in batches_of(questions, batch_size):
            for question, answer in zip(batch, self._answers_of(batch), strict=True):
                if answer.text:
                    self.answers[question.index].append(answer.text)
                if answer.text and answer.is_cut:
                    self._cut.add(question.index)
            self._asked += len(batch)
            self._tell()

    def _tell(self) -> None:
        if self._on_answer is not None:
            self._on_answer(self._asked, sum(len(prompt.questions) for prompt in self._prompts))

    def _check_lengths(self, questions: Sequence[Question]) -> None:
        """Told before the first batch; how many tokens pictures make is known in theirs."""
        from pruning.checkpoints.anatomy_reader import load_config

        check_lengths(
            load_config(self._answerer.folder),
            [question.conversation.id for question in questions],
            [question.num_tokens for question in questions],
            self._max_new_tokens,
        )

    def _answers_of(self, batch: Sequence[Question]) -> list[Answer]:
        """Found in the draft, or asked and stored there."""
        key = batch_key(self._settings, batch, self._drawing)
        found = self._draft.find(key)
        if found is not None:
            self._resumed += len(found)
            return found
        if os.path.lexists(self._out):
            raise exists(self._out)
        made = answer_batch(
            self._answerer.load(),
            self._answerer.processor,
            batch,
            max_new_tokens=self._max_new_tokens,
            ends=self._answerer.ends,
            drawing=self._drawing,
        )
        self._draft.add(key, made)
        return made

    def report(self) -> AnswerReport:
        """Of what was answered; raises DatasetError if nothing was."""
        num_answers = sum(map(len, self.answers))
        if num_answers == 0:
            raise DatasetError(
                "a model must have something to say",
                values=f"empty answers to all {len(self._prompts)} prompts",
                remedy="Is it instruction-tuned, and is its chat template its own?",
            )
        return AnswerReport(
            conversations=sum(map(bool, self.answers)),
            answers=num_answers,
            resumed=self._resumed,
            cut=tuple(self._prompts[index].id for index in sorted(self._cut)),
            left_out=tuple(
                prompt.id
                for prompt, answers in zip(self._prompts, self.answers, strict=True)
                if len(answers) < len(prompt.questions)
            ),
        )


def _document(prompts: Sequence[Prompt], answers: Sequence[Sequence[str]], out: Path) -> bytes:
    """The conversation file, one item a line; prompts without an answer are left out."""
    items = [
        _item(prompt.answered(found), out) | prompt.kinds_of(len(found))
        for prompt, found in zip(prompts, answers, strict=True)
        if found
    ]
    lines = ",\n".join(json.dumps(item, ensure_ascii=False) for item in items)
    return f"[\n{lines}\n]\n".encode()


def _item(conversation: Conversation, out: Path) -> dict[str, Any]:
    item: dict[str, Any] = {"id": conversation.id}
    if conversation.image is not None:
        item["image"] = path_from(out, conversation.image)
    item["conversations"] = messages = []
    for index, turn in enumerate(conversation.turns):
        has_image = index == 0 and conversation.image is not None
        question = f"{IMAGE_TOKEN}\n{turn.question}" if has_image else turn.question
        messages.append({"from": "human", "value": question})
        messages.append({"from": "gpt", "value": turn.answer})
    return item
