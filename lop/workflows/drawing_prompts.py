"""A prompts file of what a model itself thinks that users ask: for users who have no prompts, or too few."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lop.workflows.answering import Answerer
from lop.workflows.conversation_files import exists, path_from
from pruning.atomic_file import replace_file
from pruning.data.chat_rendering import RenderedText
from pruning.data.conversations import Conversation, Turn, check_image
from pruning.data.input_checks import check_texts
from pruning.data.prompts import Prompt
from pruning.data.user_turns import UserTurn, user_turn
from pruning.errors import DatasetError
from pruning.measuring.answer_draft import locked_answers
from pruning.measuring.answers import Answer, Question, answer_batch, batch_key, check_questions, question_of
from pruning.measuring.drawing import Drawing

LEFT_OUT = ("unfinished", "unusable", "repeated")
"""Why a draw is no prompt, as `DrawnPrompts` has it."""
_MOST_DRAWS = 4
"""As many times the prompts that are asked for: a model of which three in four are of no use draws no better ones."""


@dataclass(frozen=True)
class DrawnPrompts:
    """What was written, and what was not.

    Attributes:
        prompts: how many are in the file.
        drawn: how often the model was asked; `resumed`: of these, by an earlier run.
        unfinished: had not ended at the limit of tokens.
        unusable: without words, or such that `lop data answer` would refuse it.
        repeated: said before, of the same picture.
    """

    prompts: int
    drawn: int
    resumed: int
    unfinished: int
    unusable: int
    repeated: int


def pictures_in(folder: Path) -> list[Path]:
    """The picture files of a folder and of those in it, by path.

    Raises DatasetError if it cannot be read, has none, or one of them is no picture.
    """
    from PIL import Image

    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    try:
        next(folder.iterdir(), None)  # of a folder that is not there, `rglob` finds nothing
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings and path.is_file())
    except OSError as error:
        raise DatasetError("the folder of pictures must be readable", values=f"{folder}: {error.strerror}") from error
    if not found:
        raise DatasetError(
            "a folder of pictures must hold some",
            values=f"{folder}: no file in it is called like one (.jpg, .png, ...)",
        )
    for path in found:
        check_image(Conversation(path.name, path, ()))
    return found


def draw_prompts(
    answerer: Answerer,
    out: Path,
    *,
    count: int,
    drawing: Drawing,
    pictures: Sequence[Path] = (),
    max_new_tokens: int = 128,
    batch_size: int = 64,
    on_prompt: Callable[[int, int], None] | None = None,
) -> DrawnPrompts:
    """Write `count` different prompts to `out`, as `load_prompts` takes them; of `pictures`, in turn, if there are any.

    The model begins where a user would speak (`user_turn`). What does not end, cannot be asked or was said before is
    left out; after `_MOST_DRAWS` times `count` draws fewer are written. Batches wait in a draft beside `out`, and a run
    that was killed is gone on with by the same call. `on_prompt(done, count)` is told of progress.

    Raises:
        CheckpointError: the model does not load or has no chat template, or another process writes `out`.
        DatasetError: a picture cannot be used, no prompt was of use, or the file system refuses.
        InputError: `out` exists with other content.
    """
    turns = [(image, user_turn(answerer.processor, image)) for image in pictures or (None,)]
    most = _MOST_DRAWS * count
    check_questions([_begun(index, drawing, *turn) for index, turn in enumerate(turns[:most])], answerer.processor)
    with locked_answers(out) as draft:
        kept, resumed = _Kept(count, answerer), 0
        settings = f"prompts {answerer.settings} {max_new_tokens}"
        for batch in _batches(turns, drawing, batch_size, most):
            key = batch_key(settings, batch, drawing)
            said = draft.find(key)
            if said is not None:
                resumed += len(said)
            elif os.path.lexists(out):
                raise exists(out)
            else:
                said = _said(answerer, batch, turns, max_new_tokens, drawing)
                draft.add(key, said)
            kept.add(batch, said)
            if on_prompt is not None:
                on_prompt(len(kept.items), count)
            if len(kept.items) == count:
                break
        content = kept.document(out)
        if not os.path.lexists(out):
            replace_file(out, content)
        elif not out.is_file() or out.read_bytes() != content:
            raise exists(out)
        draft.discard()
    return kept.report(resumed)


_Turns = Sequence[tuple[Path | None, UserTurn]]


def _begun(index: int, drawing: Drawing, image: Path | None, turn: UserTurn) -> Question:
    # With the seed: prompts of two draws may be put into one file.
    return Question(index, Conversation(f"drawn-{drawing.seed}-{index}", image, (Turn("", ""),)), turn.before, 0)


def _batches(turns: _Turns, drawing: Drawing, batch_size: int, most: int) -> Iterator[list[Question]]:
    """Beginnings, pictures in turn; which of them share a batch depends on their numbers alone."""
    for start in range(0, most, batch_size):
        yield [_begun(i, drawing, *turns[i % len(turns)]) for i in range(start, min(start + batch_size, most))]


def _said(
    answerer: Answerer, batch: Sequence[Question], turns: _Turns, max_new_tokens: int, drawing: Drawing
) -> list[Answer]:
    """What the model has users say; `is_cut`: it had not ended."""
    turn = turns[0][1]  # a template ends what was said in the same way, whatever the picture
    stops = [turn.stop] if turn.stop else []
    said = answer_batch(
        answerer.load(),
        answerer.processor,
        batch,
        max_new_tokens=max_new_tokens,
        ends=answerer.ends | turn.ends,
        stops=stops,
        drawing=drawing,
    )
    return [
        Answer(x.text.partition(turn.stop)[0].strip(), False) if turn.stop and turn.stop in x.text else x for x in said
    ]


class _Kept:
    """What was said so far, by what becomes of it."""

    def __init__(self, count: int, answerer: Answerer) -> None:
        self._count, self._processor = count, answerer.processor
        self.items: list[Prompt] = []
        self._left_out: Counter[str] = Counter()
        self._seen: set[tuple[Path | None, str]] = set()
        self._drawn = 0

    def add(self, batch: Sequence[Question], said: Sequence[Answer]) -> None:
        """As many as are still needed, in order."""
        for question, answer in zip(batch, said, strict=True):
            if len(self.items) == self._count:
                return
            self._drawn += 1
            name, image, text = question.conversation.id, question.conversation.image, answer.text
            if answer.is_cut:
                self._left_out["unfinished"] += 1
            elif not self._can_be_asked(prompt := Prompt(name, image, (text,))):
                self._left_out["unusable"] += 1
            elif (image, text) in self._seen:
                self._left_out["repeated"] += 1
            else:
                self._seen.add((image, text))
                self.items.append(prompt)

    def _can_be_asked(self, prompt: Prompt) -> bool:
        """By the rules of `lop data answer`, and whether it has words."""
        if "\ufffd" in prompt.questions[0] or not any(map(str.isalnum, prompt.questions[0])):
            return False
        try:
            question = question_of(0, prompt.asked([]), self._processor)
            check_texts([RenderedText(question.conversation, question.text, ())], self._processor)
        except DatasetError:
            return False
        return True

    def report(self, resumed: int) -> DrawnPrompts:
        """Of what was added."""
        return DrawnPrompts(len(self.items), self._drawn, resumed, **{x: self._left_out[x] for x in LEFT_OUT})

    def document(self, out: Path) -> bytes:
        """The file, one prompt a line; raises DatasetError if there is none."""
        if not self.items:
            told = ", ".join(f"{count} {what}" for what, count in self._left_out.items())
            raise DatasetError(
                "where a user would speak, a model must say what a user might ask",
                values=f"of {self._drawn} draws {told}",
                remedy="Raise --max-new-tokens where prompts do not end, or write prompts yourself: not every model "
                "has learned what users say",
            )
        lines = ",\n".join(json.dumps(_item(prompt, out), ensure_ascii=False) for prompt in self.items)
        return f"[\n{lines}\n]\n".encode()


def _item(prompt: Prompt, out: Path) -> dict[str, Any]:
    item: dict[str, Any] = {"id": prompt.id, "prompt": prompt.questions[0]}
    if prompt.image is not None:
        item["image"] = path_from(out, prompt.image)
    return item
